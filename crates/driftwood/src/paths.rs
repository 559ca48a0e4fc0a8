//! Where things are kept: the state folder, the models folder and the folder of compiled kernels.

use crate::failure::mistake;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// The folder of actors: what the user gave, else `DRIFTWOOD_STATE` (which clap has read), else the platform's data folder.
///
/// # Errors
/// If there is no home folder to put it in.
pub fn state_folder(given: Option<&Path>) -> Result<PathBuf> {
    match given {
        Some(folder) => Ok(folder.to_owned()),
        None => platform_folder("XDG_DATA_HOME", ".local/share", "Library/Application Support", "--state DIR"),
    }
}

/// The folder of model files: `DRIFTWOOD_MODELS`, else one in the platform's cache folder.
///
/// # Errors
/// If there is no home folder to put it in.
pub fn models_folder() -> Result<PathBuf> {
    match std::env::var_os("DRIFTWOOD_MODELS").filter(|value| !value.is_empty()) {
        Some(folder) => Ok(folder.into()),
        None => Ok(platform_folder("XDG_CACHE_HOME", ".cache", "Library/Caches", "DRIFTWOOD_MODELS")?.join("models")),
    }
}

/// The folder of a GPU's compiled kernels: `DRIFTWOOD_PIPELINES`, else one in the platform's cache folder. `None` if the variable is empty,
/// or if there is no home folder: kernels are compiled at every start then.
pub fn pipelines_folder() -> Option<PathBuf> {
    match std::env::var_os("DRIFTWOOD_PIPELINES") {
        Some(folder) => Some(folder).filter(|folder| !folder.is_empty()).map(PathBuf::from),
        None => Some(platform_folder("XDG_CACHE_HOME", ".cache", "Library/Caches", "DRIFTWOOD_PIPELINES").ok()?.join("pipelines")),
    }
}

fn platform_folder(variable: &str, unix: &str, mac: &str, instead: &str) -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(variable).map(PathBuf::from).filter(|folder| folder.is_absolute()) {
        return Ok(folder.join("driftwood"));
    }
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    let home = home.ok_or_else(|| mistake(format!("there is no home folder; set HOME, or say where by {instead}")))?;
    Ok(home.join(if cfg!(target_os = "macos") { mac } else { unix }).join("driftwood"))
}
