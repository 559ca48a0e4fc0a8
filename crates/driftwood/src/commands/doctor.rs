//! `driftwood doctor`: whether this machine keeps the zero-copy chain, link by link and then together, and what it costs here.

use crate::cli::Globals;
use crate::output::{self, human_ms};
use crate::{catalogue, guests};
use anyhow::{Result, anyhow};
use clap::Args;
use driftwood_actor::{GpuPath, Host, HostOptions, Limits, Message, SpawnSpec};
use driftwood_compute::gpu::doctor::{self, GemmReport};
use driftwood_compute::gpu::{Gpu, GpuError};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

const EXAMPLES: &str = "\
Examples:
  driftwood doctor
  driftwood doctor --device-name llvmpipe --json

Exit codes: 0 if every link holds, 1 if one does not.";

/// Flags of `doctor`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    device: Option<String>,
    driver: Option<String>,
    api: Option<&'static str>,
    unified: Option<bool>,
    cooperative: Option<bool>,
    links: Vec<Link>,
    pointers_equal: bool,
    rss_growth_kib: RssGrowth,
    gemm_ms: GemmMs,
    gemm_errors: Option<u64>,
    gemm_copy_errors: Option<u32>,
    round_trip_us: Option<f64>,
    bandwidth_gbps: Bandwidth,
    ok: bool,
}

/// One link of the chain.
#[derive(Debug, Serialize)]
struct Link {
    name: &'static str,
    ok: bool,
    /// How it was shown, or why it fails and what to do.
    why: String,
}

/// KiB; `None` where it could not be measured.
#[derive(Debug, Default, Serialize)]
struct RssGrowth {
    zero_copy_16: Option<i64>,
    copy_16: Option<i64>,
    zero_copy_256: Option<i64>,
    copy_256: Option<i64>,
}

#[derive(Debug, Default, Serialize)]
struct GemmMs {
    zero_copy: Option<f64>,
    copy: Option<f64>,
}

#[derive(Debug, Default, Serialize)]
struct Bandwidth {
    device: Option<f64>,
    shared: Option<f64>,
}

/// Fills two matrices, has them multiplied and checks the product.
const GUEST: &str = "matmul";

/// Elements of the product that the guest checks.
const ELEMENTS: u64 = 128 * 128;

/// Examines this machine.
///
/// # Errors
/// If a link fails.
pub fn run(globals: &Globals, args: &DoctorArgs) -> Result<()> {
    let report = output::spinning("examining this machine", || examine(globals.device.device_name.as_deref()));
    if args.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    match report.links.iter().find(|link| !link.ok) {
        None => Ok(()),
        Some(link) => Err(anyhow!("the link `{}` fails: {}", link.name, link.why)),
    }
}

/// Tries every link that can be tried; what needs a link that fails says so.
fn examine(device_name: Option<&str>) -> Report {
    let mut report = Report::default();
    report.link("mmap", doctor::check_mmap().map(|()| "memory begins at a page, and growth does not move it".to_owned()));
    let gpu = Gpu::open(device_name);
    let imported = match &gpu {
        Ok(gpu) => {
            report.describe(gpu);
            doctor::check_import(gpu).map(|at| format!("the GPU reads and writes host memory in place, at {at:#x}"))
        }
        Err(why) => Err(why.clone()),
    };
    let shares = imported.is_ok();
    report.link("import", imported.map_err(|why| advise(&why)));
    report.link("linear memory", check_linear_memory());
    let together = match gpu.as_ref().ok().filter(|_| shares) {
        Some(gpu) => report.check_together(gpu),
        None => Err("not tried: it needs the link `import`".to_owned()),
    };
    report.link("all together", together);
    if let Some(gpu) = gpu.as_ref().ok().filter(|_| shares) {
        let measured = report.measure(gpu);
        report.link("measurements", measured.map(|()| "taken".to_owned()).map_err(|why| why.to_string()));
    }
    report.ok = report.links.iter().all(|link| link.ok);
    report
}

/// What a guest wrote lies in a region of ours.
fn check_linear_memory() -> Result<String, String> {
    let mut host = host()?;
    spawn(&mut host, GUEST)?;
    let reply = send(&mut host, GUEST, "11 12 13")?;
    let written = &reply[reply.len() / 2..]; // its allocator may have reused the start
    let found = host.find_in_memory(GUEST, written).map_err(|e| e.to_string())?;
    let found = found.ok_or("the guest's bytes are not in its region; this is a bug")?;
    let within = (found.region_address..found.region_address + found.region_bytes).contains(&found.address);
    if !within || !found.region_address.is_multiple_of(4096) {
        return Err(format!("the guest's bytes at {:#x} are not in its region; this is a bug", found.address));
    }
    Ok(format!("the linear memory of a guest is a region, at {:#x}", found.region_address))
}

fn host() -> Result<Host, String> {
    let device = crate::device::one_thread();
    let models = Box::new(|_: &str| Err("the doctor needs no model".to_owned()));
    Host::new(HostOptions { device: device.into(), models }).map_err(|e| e.to_string())
}

fn spawn(host: &mut Host, guest: &str) -> Result<(), String> {
    let module = guests::find(guest).map_err(|e| e.to_string())?;
    let settings = BTreeMap::from([("model".to_owned(), catalogue::DEFAULT.to_owned())]);
    let spec = SpawnSpec { name: guest.to_owned(), module, settings, limits: Limits::default(), models: Vec::new() };
    host.spawn(spec).map(drop).map_err(|e| e.to_string())
}

fn send(host: &mut Host, guest: &str, text: &str) -> Result<Vec<u8>, String> {
    host.send(Message::new(guest, text), &mut |_| {}).map(|outcome| outcome.reply).map_err(|e| e.to_string())
}

/// The error, and what to install or change.
fn advise(why: &GpuError) -> String {
    let advice = match why {
        GpuError::NoDevice { .. } if cfg!(target_vendor = "apple") => "; macOS has Metal: see --device-name",
        GpuError::NoDevice { .. } => {
            "; install a Vulkan driver (`apt install mesa-vulkan-drivers` has AMD, Intel and, in software, lavapipe; NVIDIA's driver brings its \
             own); `vulkaninfo --summary` of vulkan-tools lists what is found"
        }
        GpuError::NotImportable { .. } => {
            "; the driver needs VK_EXT_external_memory_host: update it, or choose another device with --device-name; `apt install \
             mesa-vulkan-drivers` has one in software"
        }
        _ => "; update the driver, or choose another device with --device-name",
    };
    format!("{why}{advice}")
}

impl Report {
    fn link(&mut self, name: &'static str, found: Result<String, String>) {
        let ok = found.is_ok();
        self.links.push(Link { name, ok, why: found.unwrap_or_else(|why| why) });
    }

    fn describe(&mut self, gpu: &Gpu) {
        let info = gpu.info();
        self.device = Some(info.name.clone());
        self.driver = Some(info.driver.clone());
        self.api = Some(info.api);
        self.unified = Some(info.unified);
        self.cooperative = Some(info.cooperative);
    }

    /// A guest fills two matrices, the GPU multiplies them in place, and the guest checks the product in its own memory.
    fn check_together(&mut self, gpu: &Arc<Gpu>) -> Result<String, String> {
        let mut host = host()?;
        host.set_gpu(gpu.clone());
        spawn(&mut host, GUEST)?;
        let reply = send(&mut host, GUEST, "128 128 128")?;
        let reply: serde_json::Value = serde_json::from_slice(&reply).map_err(|e| e.to_string())?;
        self.gemm_errors = reply["errors"].as_u64();
        let report = host.compute_report(GUEST).map_err(|e| e.to_string())?;
        let addresses = report.addresses.filter(|_| report.last == Some(GpuPath::Shared));
        let Some(at) = addresses else { return Err(report.why.unwrap_or_else(|| "the product was not shared".to_owned())) };
        // The guest read through its own memory what the GPU wrote at the imported address: only then are equal numbers one memory.
        let errors = self.gemm_errors.unwrap_or(ELEMENTS);
        self.pointers_equal = at.region == at.imported && at.imported == at.linear_memory && errors < ELEMENTS;
        match (self.pointers_equal, errors) {
            (true, 0) => Ok(format!("a guest found the GPU's product in its own memory, at {:#x}: 0 errors of {ELEMENTS}", at.imported)),
            (false, _) => Err(format!("region {:#x}, imported {:#x}, linear memory {:#x}", at.region, at.imported, at.linear_memory)),
            _ => Err(format!("{errors} errors of {ELEMENTS}: the driver computes wrongly; update it")),
        }
    }

    fn measure(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        let [zero_copy_16, copy_16] = doctor::rss_growth_kib(gpu, 16 << 20)?;
        let [zero_copy_256, copy_256] = doctor::rss_growth_kib(gpu, 256 << 20)?;
        self.rss_growth_kib = RssGrowth { zero_copy_16, copy_16, zero_copy_256, copy_256 };
        let GemmReport { zero_copy_ms, copy_ms, zero_copy_errors, copy_errors } = doctor::gemm(gpu)?;
        self.gemm_ms = GemmMs { zero_copy: Some(zero_copy_ms), copy: Some(copy_ms) };
        self.gemm_errors = Some(self.gemm_errors.unwrap_or(0) + u64::from(zero_copy_errors));
        self.gemm_copy_errors = Some(copy_errors);
        self.round_trip_us = Some(doctor::round_trip_us(gpu)?);
        let [device, shared] = doctor::bandwidth_gbps(gpu)?;
        self.bandwidth_gbps = Bandwidth { device: Some(device), shared: Some(shared) };
        Ok(())
    }
}

/// The links, and then the two paths beside each other.
fn print(report: &Report) -> Result<()> {
    let unknown = || "none".to_owned();
    let device = report.device.clone().unwrap_or_else(unknown);
    let memory = match report.unified {
        Some(true) => "one memory with the processor",
        Some(false) => "a memory of its own beside the shared window",
        None => "no GPU",
    };
    output::line(&format!("{device} ({}), {memory}\n", report.driver.clone().unwrap_or_else(unknown)))?;
    let row = |link: &Link| vec![link.name.to_owned(), if link.ok { "ok" } else { "FAILS" }.to_owned(), link.why.clone()];
    output::table(&["link", "", "how it was shown"], &report.links.iter().map(row).collect::<Vec<_>>())?;
    output::line("")?;
    let (growth, gemm) = (&report.rss_growth_kib, &report.gemm_ms);
    let pointers = if report.pointers_equal { "mmap == GPU == linear memory" } else { "not equal" };
    let rows = [
        ["pointer identity".to_owned(), pointers.to_owned(), "different addresses".to_owned()],
        ["resident memory, 16 MiB region".to_owned(), mib(growth.zero_copy_16), mib(growth.copy_16)],
        ["resident memory, 256 MiB region".to_owned(), mib(growth.zero_copy_256), mib(growth.copy_256)],
        ["GEMM 128x128, median".to_owned(), ms(gemm.zero_copy), ms(gemm.copy)],
        ["errors of 16,384".to_owned(), count(report.gemm_errors), count(report.gemm_copy_errors)],
        ["a kernel reads".to_owned(), gbps(report.bandwidth_gbps.shared), gbps(report.bandwidth_gbps.device)],
    ];
    output::table(&["", "zero-copy path", "copy path"], &rows.map(Vec::from))?;
    let round_trip = report.round_trip_us.map_or("not measured".to_owned(), |us| format!("{us:.0} us"));
    output::line(&format!("\nround trip of an empty dispatch: {round_trip}"))
}

const NOT_MEASURED: &str = "not measured";

fn mib(kib: Option<i64>) -> String {
    kib.map_or(NOT_MEASURED.to_owned(), |kib| format!("{:+.2} MiB", kib as f64 / 1024.0))
}

fn ms(ms: Option<f64>) -> String {
    ms.map_or(NOT_MEASURED.to_owned(), |ms| format!("{} ms", human_ms(ms)))
}

fn gbps(gbps: Option<f64>) -> String {
    gbps.map_or(NOT_MEASURED.to_owned(), |gbps| format!("{gbps:.1} GB/s"))
}

fn count(count: Option<impl ToString>) -> String {
    count.map_or(NOT_MEASURED.to_owned(), |count| count.to_string())
}
