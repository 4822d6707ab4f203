//! Who depends on whom, as cargo resolved it.

use std::collections::HashMap;

use cargo_metadata::{DependencyKind, Metadata, PackageId};

use super::arrows::Edge;

/// The crates of the workspace that are published.
pub(super) fn libraries(metadata: &Metadata) -> Vec<&str> {
    let members = metadata.workspace_packages().into_iter();
    let published =
        members.filter(|package| package.publish.as_ref().is_none_or(|to| !to.is_empty()));
    published.map(|package| package.name.as_str()).collect()
}

/// All normal and build dependencies, on every platform and with every feature.
pub(super) fn edges(metadata: &Metadata) -> Vec<Edge<'_>> {
    let names: HashMap<&PackageId, &str> = metadata
        .packages
        .iter()
        .map(|package| (&package.id, package.name.as_str()))
        .collect();
    let nodes = metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
    let edges = nodes.flat_map(|node| {
        let shipped = node.deps.iter().filter(|dependency| {
            let mut kinds = dependency.dep_kinds.iter();
            kinds.any(|kind| kind.kind != DependencyKind::Development)
        });
        shipped.map(|dependency| (names[&node.id], names[&dependency.pkg]))
    });
    edges.collect()
}
