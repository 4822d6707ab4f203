//! Which crate may depend on which: the table, and what contradicts it.

use std::collections::{BTreeMap, VecDeque};

/// A crate, and one that it depends on.
pub(super) type Edge<'a> = (&'a str, &'a str);

/// What holds for one crate of ours.
struct Rule {
    /// The crate.
    of: &'static str,
    /// The crates of ours that it may depend on.
    ours: &'static [&'static str],
    /// What may be nowhere among its dependencies, nor among theirs.
    never: &'static [&'static [&'static str]],
    /// All that it may depend on besides ours, where that is known.
    only: Option<&'static [&'static str]>,
    /// Why.
    why: &'static str,
}

const RUNTIME: &[&str] = &["tokio", "async-std", "smol", "futures-executor"];
const DATABASE: &[&str] = &[
    "diesel",
    "diesel_migrations",
    "libsqlite3-sys",
    "rusqlite",
    "sqlx",
];

/// What a program chooses, and no library for it.
const FOR_PROGRAMS: &[&str] = &["anyhow", "env_logger"];

const RULES: &[Rule] = &[
    Rule {
        of: "domain-events",
        ours: &["domain-events-derive"],
        never: &[RUNTIME, DATABASE, FOR_PROGRAMS],
        only: Some(&[
            "async-trait",
            "jiff",
            "log",
            "serde",
            "serde_json",
            "thiserror",
            "uuid",
        ]),
        why: "the language knows no infrastructure",
    },
    Rule {
        of: "domain-events-derive",
        ours: &[],
        never: &[RUNTIME, DATABASE, FOR_PROGRAMS],
        only: Some(&["proc-macro-crate", "proc-macro2", "quote", "syn"]),
        why: "the derive is part of the language",
    },
    Rule {
        of: "event-bus-core",
        ours: &["domain-events"],
        never: &[DATABASE],
        only: None,
        why: "the bus reaches a store only through the ports of domain-events",
    },
    Rule {
        of: "event-store-diesel",
        ours: &["domain-events"],
        never: &[RUNTIME],
        only: None,
        why: "the store serves any bus and any runtime",
    },
    Rule {
        of: "event-testkit",
        ours: &["domain-events"],
        never: &[DATABASE],
        only: None,
        why: "what proves the ports must not know who implements them",
    },
    Rule {
        of: "event-system",
        ours: &["domain-events", "event-bus-core", "event-store-diesel"],
        never: &[],
        only: None,
        why: "it assembles bus and store",
    },
];

/// Every path that the table does not allow, one line each; `libraries` are the crates of ours.
pub(super) fn violations(libraries: &[&str], edges: &[Edge<'_>]) -> Vec<String> {
    let violations =
        libraries.iter().flat_map(
            |library| match RULES.iter().find(|rule| rule.of == *library) {
                Some(rule) => rule.violations(libraries, edges),
                None => vec![format!(
                    "{library} has no rule: add it to xtask/src/arch/arrows.rs"
                )],
            },
        );
    violations.collect()
}

impl Rule {
    fn violations(&self, libraries: &[&str], edges: &[Edge<'_>]) -> Vec<String> {
        // Another crate of ours has a rule of its own, and a wrong arrow is to be named once.
        let leads_on = |name: &str| !libraries.contains(&name) && !self.forbids(name);
        let paths = paths(self.of, edges, leads_on).into_values();
        let refused = paths.filter_map(|path| {
            let why = self.refuse(libraries, &path)?;
            Some(format!("{} is not allowed: {why}", path.join(" -> ")))
        });
        refused.collect()
    }

    /// Why the crate must not reach the end of this path, which begins with the crate.
    fn refuse(&self, libraries: &[&str], path: &[&str]) -> Option<&'static str> {
        let end = path.last()?;
        if self.forbids(end) {
            return Some(self.why);
        }
        if path.len() != 2 {
            return None;
        }
        if FOR_PROGRAMS.contains(end) {
            return Some("errors and log output are the choice of the program");
        }
        let allowed = if libraries.contains(end) {
            self.ours.contains(end)
        } else {
            self.only.is_none_or(|only| only.contains(end))
        };
        (!allowed).then_some(self.why)
    }

    fn forbids(&self, name: &str) -> bool {
        self.never.iter().any(|names| names.contains(&name))
    }
}

/// The shortest path from `start` to each crate that it reaches through those that lead on.
fn paths<'a>(
    start: &'a str,
    edges: &[Edge<'a>],
    leads_on: impl Fn(&str) -> bool,
) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut paths = BTreeMap::from([(start, vec![start])]);
    let mut next = VecDeque::from([start]);
    while let Some(from) = next.pop_front() {
        for &(_, to) in edges.iter().filter(|edge| edge.0 == from) {
            if paths.contains_key(to) {
                continue;
            }
            paths.insert(to, paths[from].iter().copied().chain([to]).collect());
            if leads_on(to) {
                next.push_back(to);
            }
        }
    }
    paths.remove(start);
    paths
}

#[cfg(test)]
mod tests {
    use super::{Edge, RULES, violations};

    const RIGHT: &[Edge<'_>] = &[
        ("domain-events", "domain-events-derive"),
        ("domain-events", "serde"),
        ("domain-events", "log"),
        ("domain-events-derive", "syn"),
        ("event-bus-core", "domain-events"),
        ("event-bus-core", "tokio"),
        ("event-store-diesel", "domain-events"),
        ("event-store-diesel", "diesel"),
        ("event-testkit", "domain-events"),
        ("event-system", "event-bus-core"),
        ("event-system", "event-store-diesel"),
    ];

    fn with(wrong: &[Edge<'_>]) -> Vec<String> {
        let libraries: Vec<&str> = RULES.iter().map(|rule| rule.of).collect();
        violations(&libraries, &[RIGHT, wrong].concat())
    }

    /// The one violation that `wrong` brings.
    fn refusal(wrong: &[Edge<'_>]) -> String {
        let violations = with(wrong);
        assert_eq!(violations.len(), 1, "{violations:?}");
        violations.into_iter().next().unwrap()
    }

    #[test]
    fn the_drawn_arrows_are_allowed() {
        assert_eq!(with(&[]), Vec::<String>::new());
    }

    #[test]
    fn the_language_takes_only_what_is_listed() {
        assert!(
            refusal(&[("domain-events", "tracing")]).starts_with("domain-events -> tracing is not")
        );
        assert!(refusal(&[("domain-events", "event-bus-core")]).contains("-> event-bus-core is"));
    }

    #[test]
    fn infrastructure_is_found_however_deep() {
        let deep = refusal(&[("serde", "helper"), ("helper", "tokio")]);
        assert!(
            deep.starts_with("domain-events -> serde -> helper -> tokio is not"),
            "{deep}"
        );
    }

    #[test]
    fn bus_and_store_do_not_know_each_other() {
        let bus = with(&[("event-bus-core", "event-store-diesel")]);
        assert!(
            bus[0].starts_with("event-bus-core -> event-store-diesel is not"),
            "{bus:?}"
        );
        let store = with(&[("event-store-diesel", "event-bus-core")]);
        assert!(
            store[0].starts_with("event-store-diesel -> event-bus-core is not"),
            "{store:?}"
        );
        assert!(refusal(&[("event-bus-core", "diesel")]).contains("through the ports"));
        assert!(refusal(&[("event-store-diesel", "tokio")]).contains("any runtime"));
    }

    #[test]
    fn nobody_depends_on_the_assembly() {
        for of in ["event-bus-core", "event-store-diesel", "event-testkit"] {
            assert!(refusal(&[(of, "event-system")]).contains("-> event-system is not"));
        }
    }

    #[test]
    fn no_library_chooses_for_the_program() {
        for rule in RULES {
            for name in ["anyhow", "env_logger"] {
                let arrow = format!("{} -> {name} is not", rule.of);
                assert!(refusal(&[(rule.of, name)]).starts_with(&arrow));
            }
        }
    }

    #[test]
    fn a_crate_without_a_rule_is_found() {
        assert!(violations(&["event-cloud"], &[])[0].starts_with("event-cloud has no rule"));
    }
}
