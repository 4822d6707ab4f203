//! A recorder to look into.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use ::metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// A recorder that keeps the last value of everything, and all descriptions.
#[derive(Default)]
pub(super) struct Recorded {
    values: Mutex<BTreeMap<Named, (Kind, Arc<AtomicU64>)>>,
    pub(super) described: Mutex<Vec<Described>>,
}

/// Name, kind, unit and meaning.
type Described = (String, Kind, Option<Unit>, String);

/// A name, and labels with their values.
type Named = (String, Vec<(String, String)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

impl Recorded {
    fn register(&self, kind: Kind, key: &Key) -> Arc<AtomicU64> {
        let labels = key.labels().map(|it| (it.key().into(), it.value().into()));
        let named = (key.name().to_owned(), labels.collect());
        let mut values = self.values.lock().unwrap();
        let (known, value) = values.entry(named).or_insert((kind, Arc::default()));
        assert_eq!(*known, kind, "{key}");
        Arc::clone(value)
    }

    fn note(&self, kind: Kind, name: &KeyName, unit: Option<Unit>, text: SharedString) {
        let (name, text) = (name.as_str().to_owned(), text.into_owned());
        let mut described = self.described.lock().unwrap();
        described.push((name, kind, unit, text));
    }

    /// All values as a page of them shows them: `name{label=value}`.
    pub(super) fn page(&self) -> BTreeMap<String, f64> {
        let values = self.values.lock().unwrap();
        let shown = values.iter().map(|((name, labels), (kind, value))| {
            let labels: Vec<_> = labels
                .iter()
                .map(|(key, of)| format!("{key}={of}"))
                .collect();
            let value = value.load(Ordering::SeqCst);
            let value = match kind {
                Kind::Counter => value as f64,
                Kind::Gauge => f64::from_bits(value),
            };
            (format!("{name}{{{}}}", labels.join(",")), value)
        });
        shown.collect()
    }

    /// Name, kind and labels of everything, as the documentation has them.
    pub(super) fn table(&self) -> BTreeSet<(String, Kind, String)> {
        let values = self.values.lock().unwrap();
        let rows = values.iter().map(|((name, labels), (kind, _))| {
            let labels: Vec<_> = labels.iter().map(|(key, _)| format!("`{key}`")).collect();
            (name.clone(), *kind, labels.join(", "))
        });
        rows.collect()
    }
}

impl Recorder for Recorded {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.note(Kind::Counter, &name, unit, text);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.note(Kind::Gauge, &name, unit, text);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        panic!("{} is a histogram", name.as_str());
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.register(Kind::Counter, key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.register(Kind::Gauge, key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        panic!("{key} is a histogram");
    }
}
