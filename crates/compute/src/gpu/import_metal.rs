//! Metal: `newBufferWithBytesNoCopy` (Apple's documentation describes it), a layer below wgpu.
