//! The files of the workspace.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// All files and symbolic links under `folder`, sorted; links are not followed.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in entries(folder)? {
        let kind = fs::symlink_metadata(&entry)?.file_type();
        if kind.is_dir() {
            found.extend(files(&entry)?);
        } else {
            found.push(entry);
        }
    }
    Ok(found)
}

/// What is in `folder`, sorted.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("{} could not be read", folder.display());
    let mut entries = fs::read_dir(folder)
        .with_context(context)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()
        .with_context(context)?;
    entries.sort();
    Ok(entries)
}

/// Makes `folder` an empty one and returns it.
pub(super) fn empty(folder: PathBuf) -> Result<PathBuf> {
    let context = || format!("{} could not be emptied", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(context)?;
    }
    fs::create_dir_all(&folder).with_context(context)?;
    Ok(folder)
}
