//! Rules for source files: what they begin with, and what they never name.

use std::{fs, path::Path};

use anyhow::Result;

use super::tree;

const README: &str = "#![doc = include_str!(\"../README.md\")]";
const MACHINES: &[&str] = &["/home/", "/root/", "/Users/", "C:\\Users\\"];

/// Every file that breaks a rule, one line each.
pub(super) fn violations(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for folder in ["crates", "docs", "migrations"] {
        for file in tree::files(&root.join(folder))? {
            // Links lead to files that are looked at where they are, others are not text.
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            let name = file
                .strip_prefix(root)
                .unwrap_or(&file)
                .display()
                .to_string();
            found.extend(broken(&name, &text).map(|rule| format!("{name}: {rule}")));
        }
    }
    Ok(found)
}

/// The rule that the file breaks.
fn broken(name: &str, text: &str) -> Option<&'static str> {
    if MACHINES.iter().any(|path| text.contains(path)) {
        return Some("names a path of one machine");
    }
    let mut parts = name.rsplit(['/', '\\']);
    let (file, folder) = (parts.next()?, parts.next()?);
    if !file.ends_with(".rs") || !name.replace('\\', "/").contains("/src/") {
        return None;
    }
    if (folder, file) == ("src", "lib.rs") {
        return (!text.starts_with(README))
            .then_some("does not begin with its README as documentation");
    }
    (!text.starts_with("//! ")).then_some("does not begin with a sentence that says what it is")
}

#[cfg(test)]
mod tests {
    use super::{README, broken};

    #[test]
    fn a_library_begins_with_its_readme() {
        assert_eq!(broken("crates/a/src/lib.rs", README), None);
        assert!(broken("crates/a/src/lib.rs", "//! A library.").is_some());
    }

    #[test]
    fn a_file_begins_with_what_it_is() {
        assert_eq!(broken("crates/a/src/b/c.rs", "//! Deliveries."), None);
        assert!(broken("crates/a/src/b/c.rs", "use std::fs;").is_some());
        assert_eq!(broken("crates/a/README.md", "# a"), None);
    }

    #[test]
    fn no_file_knows_a_machine() {
        assert!(broken("crates/a/README.md", concat!("see /ho", "me/me/data")).is_some());
    }
}
