//! Finds the migrations: a link to the workspace's folder, or a plain file where links are not supported.

use std::path::Path;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(migrations_elsewhere)");
    // A package carries the folder itself, and so does a clone with links.
    let (folder, elsewhere) = match Path::new("migrations").is_dir() {
        true => ("migrations", false),
        false => ("../../migrations", true),
    };
    if elsewhere {
        println!("cargo::rustc-cfg=migrations_elsewhere");
    }
    println!("cargo::rerun-if-changed=migrations");
    println!("cargo::rerun-if-changed={folder}");
}
