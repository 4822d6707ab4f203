//! Migrations, wherever the store is built: in the workspace, from its package, without symlinks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use cargo_metadata::Metadata;

use super::tree;
use crate::step;

/// The crate whose migrations these are.
pub(super) const STORE: &str = "event-store-diesel";

/// What is wrong with the migrations of the workspace, one line each.
pub(super) fn violations(root: &Path) -> Result<Vec<String>> {
    let steps = tree::entries(&root.join("migrations"))?;
    if steps.is_empty() {
        return Ok(vec!["migrations: there are none".to_owned()]);
    }
    let mut found = Vec::new();
    for step in &steps {
        for file in ["up.sql", "down.sql"] {
            if fs::read_to_string(step.join(file)).is_ok_and(|sql| !sql.trim().is_empty()) {
                continue;
            }
            found.push(format!("{}/{file} is missing or empty", shown(root, step)));
        }
    }
    let link = root.join("crates").join(STORE).join("migrations");
    if !leads_to_migrations(&link, root) {
        found.push(format!(
            "{} does not lead to ../../migrations",
            shown(root, &link)
        ));
    }
    Ok(found)
}

/// A link to the migrations, or the text that a clone without symlinks has in its place.
fn leads_to_migrations(link: &Path, root: &Path) -> bool {
    if link.is_dir() {
        return link.canonicalize().ok() == root.join("migrations").canonicalize().ok();
    }
    fs::read_to_string(link).is_ok_and(|text| text.trim() == "../../migrations")
}

/// The migrations that the unpacked package of the store does not have, one line each.
pub(super) fn missing_in_package(root: &Path, package: &Path) -> Result<Vec<String>> {
    let files = tree::files(&root.join("migrations"))?;
    let names = files.iter().map(|file| shown(root, file));
    let missing = names.filter(|name| !package.join(name).is_file());
    Ok(missing
        .map(|name| format!("{name} is not in the package of {STORE}"))
        .collect())
}

/// Builds the store in a copy of the workspace whose links are text, as in a clone without symlinks.
pub(super) fn build_without_symlinks(metadata: &Metadata) -> Result<()> {
    let root = metadata.workspace_root.as_std_path();
    step::say("copy the workspace with text in place of symlinks");
    let copy = tree::empty(metadata.target_directory.join("arch/no-symlinks").into())?;
    for file in files_to_copy(root)? {
        copy_as_text(&file, &copy.join(file.strip_prefix(root)?))
            .with_context(|| format!("{} could not be copied", file.display()))?;
    }
    let mut check = step::cargo(["check", "--package", STORE, "--target-dir"]);
    step::run(check.arg(&metadata.target_directory).current_dir(&copy))
}

fn files_to_copy(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![root.join("Cargo.toml"), root.join("Cargo.lock")];
    for folder in ["crates", "migrations", "xtask"] {
        files.extend(tree::files(&root.join(folder))?);
    }
    Ok(files)
}

fn copy_as_text(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::read_link(from) {
        Ok(target) => fs::write(to, target.to_string_lossy().as_bytes())?,
        Err(_) => drop(fs::copy(from, to)?),
    }
    Ok(())
}

fn shown(root: &Path, path: &Path) -> String {
    let path = path.strip_prefix(root).unwrap_or(path);
    path.to_string_lossy().replace('\\', "/")
}
