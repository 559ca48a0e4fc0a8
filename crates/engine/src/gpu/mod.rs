//! Passes on a graphics processor.

use crate::batch::{Plan, Work};
use crate::{Error, Model};
use driftwood_compute::KvLayout;
use driftwood_compute::gpu::Gpu;
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct GpuPasses {
    logits: Vec<f32>,
}

impl GpuPasses {
    pub(crate) fn new(_gpu: &Arc<Gpu>) -> GpuPasses {
        GpuPasses { logits: Vec::new() }
    }

    pub(crate) fn evaluate(&mut self, _model: &Model, _plan: &Plan, _layout: KvLayout, _work: &mut [Work<'_>]) -> Result<&[f32], Error> {
        Ok(&self.logits)
    }
}
