//! The crates as users get them: each from its package, with nothing of the workspace around it.

use std::{fmt::Write, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use cargo_metadata::{Metadata, Package};

use super::{forbid, graph, migrations, tree};
use crate::step;

/// The workspace of the unpacked crates; its profile is ours, so that what is built for one serves both.
const HOUSE: &str = r#"[workspace]
resolver = "3"
members = ["*-*"]

[profile.dev]
debug = "line-tables-only"

[patch.crates-io]
"#;

/// Packages all crates, unpacks them into a workspace of their own and builds them there.
///
/// `cargo package` can verify packages that need each other, but may take a sibling as it was
/// unpacked in an earlier run.
pub(super) fn build(metadata: &Metadata) -> Result<()> {
    let root = metadata.workspace_root.as_std_path();
    let target = metadata.target_directory.as_std_path();
    let libraries = graph::libraries(metadata);
    let packages = metadata.workspace_packages();
    let packages = packages
        .into_iter()
        .filter(|package| libraries.contains(&package.name.as_str()));
    let packages: Vec<&Package> = packages.collect();

    pack(&packages, target)?;
    let house = tree::empty(target.join("arch/packages"))?;
    unpack(&packages, target, &house)?;
    forbid(&missing_texts(&packages, &house))?;
    let store = packages
        .iter()
        .find(|package| package.name.as_str() == migrations::STORE);
    let store = house.join(folder(store.context("the store is not in the workspace")?));
    forbid(&migrations::missing_in_package(root, &store)?)?;

    fs::write(house.join("Cargo.toml"), manifest(&packages)?)?;
    fs::copy(root.join("Cargo.lock"), house.join("Cargo.lock"))?;
    let mut check = step::cargo(["check", "--workspace", "--target-dir"]);
    step::run(check.arg(target).current_dir(&house))
}

fn pack(packages: &[&Package], target: &Path) -> Result<()> {
    let mut command = step::cargo([
        "package",
        "--quiet",
        "--allow-dirty",
        "--no-verify",
        "--target-dir",
    ]);
    command.arg(target);
    for package in packages {
        command.args(["--package", package.name.as_str()]);
    }
    step::run(&mut command)
}

fn unpack(packages: &[&Package], target: &Path, house: &Path) -> Result<()> {
    for package in packages {
        let archive = target
            .join("package")
            .join(format!("{}.crate", folder(package)));
        let mut tar = Command::new("tar");
        step::run(tar.arg("-xzf").arg(archive).arg("-C").arg(house))?;
    }
    Ok(())
}

/// The texts that every package must carry and one does not, one line each.
fn missing_texts(packages: &[&Package], house: &Path) -> Vec<String> {
    let texts = ["README.md", "LICENSE-MIT", "LICENSE-APACHE"];
    let files = packages
        .iter()
        .flat_map(|package| texts.map(|text| (package, text)));
    let missing = files.filter(|(package, text)| !house.join(folder(package)).join(text).is_file());
    missing
        .map(|(package, text)| format!("{text} is not in the package of {}", package.name))
        .collect()
}

/// A workspace of the unpacked crates, in which each takes the others from here.
fn manifest(packages: &[&Package]) -> Result<String> {
    let mut text = HOUSE.to_owned();
    for package in packages {
        writeln!(
            text,
            "{} = {{ path = \"{}\" }}",
            package.name,
            folder(package)
        )?;
    }
    Ok(text)
}

fn folder(package: &Package) -> String {
    format!("{}-{}", package.name, package.version)
}
