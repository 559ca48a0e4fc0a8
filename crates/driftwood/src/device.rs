//! The device that a command runs on, from its flags.

use crate::failure::mistake;
use crate::paths;
use anyhow::Result;
use clap::{Args, ValueEnum};
use driftwood_compute::gpu::Gpu;
use driftwood_compute::{Arithmetic, Cpu, KvDType, Simd};
use driftwood_engine::Device;
use std::sync::Arc;

/// Kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// A graphics processor.
    Gpu,
}

/// What to compute on, and how. All choices but --exact give the same bits.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Where to compute
    #[arg(long, global = true, value_enum, default_value = "cpu", help_heading = "Device")]
    pub device: DeviceKind,
    /// Part of the name of the GPU to use [default: the best]
    #[arg(long, global = true, value_name = "TEXT", help_heading = "Device")]
    pub device_name: Option<String>,
    /// Threads to compute with [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Device")]
    pub threads: Option<u16>,
    /// Instructions to compute with: portable, avx2, avx512 or neon [default: the best]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Device")]
    pub simd: Option<Simd>,
    /// Compute in f32 from de-quantised weights, with f32 KV: the slow reference
    #[arg(long, global = true, help_heading = "Device")]
    pub exact: bool,
}

/// A small device for what computes next to nothing.
pub fn one_thread() -> Arc<Cpu> {
    Arc::new(Cpu::new(1, Simd::detect(), Arithmetic::Fast))
}

impl DeviceArgs {
    /// The device of models.
    ///
    /// # Errors
    /// If this machine or this build does not have it.
    pub fn open(&self) -> Result<Device> {
        let simd = self.simd.unwrap_or_else(Simd::detect);
        if !simd.is_available() {
            let available: Vec<String> = Simd::available().iter().map(Simd::to_string).collect();
            return Err(mistake(format!("this machine has no {simd}; --simd takes {}", available.join(", "))));
        }
        let arithmetic = if self.exact { Arithmetic::Exact } else { Arithmetic::Fast };
        let gpu = match self.device {
            DeviceKind::Cpu => None,
            DeviceKind::Gpu => Some(Gpu::open_with_pipelines(self.device_name.as_deref(), paths::pipelines_folder().as_deref())?),
        };
        Ok(Device { cpu: Arc::new(Cpu::new(self.threads(), simd, arithmetic)), gpu })
    }

    /// Its kind, as reports name it.
    pub fn name(&self) -> &'static str {
        match self.device {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Gpu => "gpu",
        }
    }

    /// Threads to use.
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(cores, usize::from)
    }

    /// The KV type: what was asked for, else what goes with the arithmetic.
    pub fn kv(&self, asked: Option<KvDType>) -> KvDType {
        asked.unwrap_or(if self.exact { KvDType::F32 } else { KvDType::F16 })
    }
}
