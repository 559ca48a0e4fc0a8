//! What a kernel shows to the outside: its entry point, its workgroup, its buffers.

use super::{GuestBinding, GuestKernelError as Error, GuestKernelLimits};
use naga::{AddressSpace, Module, ShaderStage, StorageAccess, TypeInner};

/// How many types, functions and module variables there may be: drivers nest and inline them.
const TYPES_MAX: usize = 256;
const FUNCTIONS_MAX: usize = 64;
const GLOBALS_MAX: usize = 64;
/// Invocations of a workgroup along z, as wgpu's default limit has it.
const WORKGROUP_Z_MAX: u32 = 64;

/// Refuses what the passes after this one do not expect, and too much of anything. Needs no validated module.
pub(super) fn bound_counts(module: &Module) -> Result<(), Error> {
    if !module.overrides.is_empty() || module.entry_points.iter().any(|entry| entry.workgroup_size_overrides.is_some()) {
        return Err(Error::Unsupported { what: "overrides; write constants" });
    }
    at_most("types", module.types.len() as u64, TYPES_MAX as u64)?;
    at_most("functions", module.functions.len() as u64, FUNCTIONS_MAX as u64)?;
    at_most("module variables", module.global_variables.len() as u64, GLOBALS_MAX as u64)
}

/// An error if there are more than `max` of something.
pub(super) fn at_most(what: &'static str, count: u64, max: u64) -> Result<(), Error> {
    if count > max { Err(Error::TooMany { what, count, max }) } else { Ok(()) }
}

/// Checks a valid module against the limits, and returns its bindings in order and its workgroup's size.
pub(super) fn check(module: &Module, entry: &str, limits: &GuestKernelLimits) -> Result<(Vec<GuestBinding>, [u32; 3]), Error> {
    let size = entry_point(module, entry)?;
    let invocations = size.iter().try_fold(1_u32, |product, &count| product.checked_mul(count));
    let fits = invocations.is_some_and(|count| (1..=limits.workgroup_invocations_max).contains(&count));
    if !fits || size[2] > WORKGROUP_Z_MAX {
        return Err(Error::WorkgroupSize { size, invocations_max: limits.workgroup_invocations_max });
    }
    let bindings = bindings(module, limits.bindings_max)?;
    let shared = module.global_variables.iter().filter(|(_, variable)| variable.space == AddressSpace::WorkGroup);
    let shared_bytes = shared.map(|(_, variable)| bytes(module, &module.types[variable.ty].inner)).sum();
    at_most("bytes of workgroup memory", shared_bytes, limits.workgroup_bytes_max)?;
    Ok((bindings, size))
}

/// The size of a type of a valid module, an array without a length counting one element.
pub(super) fn bytes(module: &Module, inner: &TypeInner) -> u64 {
    inner.try_size(module.to_ctx()).map_or(u64::MAX >> 8, u64::from)
}

fn entry_point(module: &Module, expected: &str) -> Result<[u32; 3], Error> {
    match module.entry_points.as_slice() {
        [only] if only.stage == ShaderStage::Compute && only.name == expected => Ok(only.workgroup_size),
        entries => {
            let found: Vec<_> = entries.iter().map(|entry| format!("{:?} `{}`", entry.stage, entry.name)).collect();
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            Err(Error::EntryPoint { expected: expected.to_owned(), found })
        }
    }
}

fn bindings(module: &Module, bindings_max: usize) -> Result<Vec<GuestBinding>, Error> {
    let mut found = Vec::new();
    for (_, variable) in module.global_variables.iter() {
        let access = match variable.space {
            AddressSpace::Private | AddressSpace::WorkGroup if variable.binding.is_none() => continue,
            AddressSpace::Storage { access } => access,
            AddressSpace::Uniform => return Err(Error::Unsupported { what: "uniform buffers; use `var<storage, read>`" }),
            AddressSpace::Handle => return Err(Error::Unsupported { what: "textures, samplers or other handles" }),
            _ => return Err(Error::Unsupported { what: "variables of that address space" }),
        };
        let refused = || Error::Binding { name: variable.name.clone().unwrap_or_default() };
        let binding = variable.binding.filter(|binding| binding.group == 0).ok_or_else(refused)?;
        let (bytes_min, writable) = (bytes(module, &module.types[variable.ty].inner), access.contains(StorageAccess::STORE));
        let readable = access.contains(StorageAccess::LOAD);
        if matches!(module.types[variable.ty].inner, TypeInner::BindingArray { .. }) || !readable {
            return Err(refused());
        }
        found.push((binding.binding, GuestBinding { writable, bytes_min }, refused()));
    }
    at_most("bindings", found.len() as u64, bindings_max as u64)?;
    found.sort_by_key(|(number, ..)| *number);
    let numbered = found.into_iter().enumerate();
    numbered.map(|(index, (number, binding, error))| if number as usize == index { Ok(binding) } else { Err(error) }).collect()
}
