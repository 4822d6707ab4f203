//! Whether an event to be appended is in the log already (P6).

use std::collections::HashMap;

use domain_events::{AppendError, EventEnvelope, EventId, Position};
use serde_json::Value;

use crate::{
    append::{Prepared, Stop},
    transaction::Transaction,
};

/// What the log says of an event of a batch.
#[derive(Debug)]
pub(crate) enum Presence {
    New,
    /// The log has it.
    There(Box<EventEnvelope>),
    /// It is the same as an earlier one of its batch, with this index.
    Twin(usize),
}

/// What the log says of each event of a batch; refused where it has only some of them.
pub(crate) fn presences(
    tx: &mut Transaction<'_>,
    batch: &[Prepared],
) -> Result<Vec<Presence>, Stop> {
    let twins = twins(batch)?;
    let mut presences = Vec::with_capacity(batch.len());
    for (index, prepared) in batch.iter().enumerate() {
        presences.push(match (presence(tx, prepared)?, twins.get(&index)) {
            (Presence::New, Some(&first)) => Presence::Twin(first),
            (presence, _) => presence,
        });
    }
    let is_there = |presence: &&Presence| matches!(presence, Presence::There(_));
    let present = presences.iter().filter(is_there).count();
    match present == 0 || present == batch.len() {
        true => Ok(presences),
        false => Err(Stop::Refused(AppendError::PartlyThere {
            present,
            batch: batch.len(),
        })),
    }
}

fn presence(tx: &mut Transaction<'_>, prepared: &Prepared) -> Result<Presence, Stop> {
    match tx.event(prepared.event.id())? {
        None => Ok(Presence::New),
        Some(found) if same(&prepared.event, &found) => Ok(Presence::There(Box::new(found))),
        Some(found) => Err(taken(&found, found.position().unwrap_or_default())),
    }
}

/// The events that repeat an earlier one of their batch, each with the index of the first.
fn twins(batch: &[Prepared]) -> Result<HashMap<usize, usize>, Stop> {
    let mut twins = HashMap::new();
    // Ids are mostly made in ascending order, and then no two are equal.
    if batch.is_sorted_by(|a, b| a.event.id() < b.event.id()) {
        return Ok(twins);
    }
    let mut first: HashMap<EventId, usize> = HashMap::with_capacity(batch.len());
    for (index, Prepared { event, .. }) in batch.iter().enumerate() {
        let earlier = *first.entry(event.id()).or_insert(index);
        if earlier == index {
            continue;
        }
        if !same(event, &batch[earlier].event) {
            return Err(taken(event, Position::ZERO));
        }
        twins.insert(index, earlier);
    }
    Ok(twins)
}

fn taken(event: &EventEnvelope, position: Position) -> Stop {
    let id = event.id();
    Stop::Refused(AppendError::IdTaken { id, position })
}

/// Whether two events with the same id are the same event: in type, aggregate and payload.
fn same(one: &EventEnvelope, other: &EventEnvelope) -> bool {
    let names = one.event_type() == other.event_type() && one.aggregate() == other.aggregate();
    let (Ok(one), Ok(other)) = (one.payload(), other.payload()) else {
        return false;
    };
    names && (one == other || same_value(one, other))
}

/// Whether two JSON texts differ in nothing but the order of members, which for a hash map is
/// another one each time.
fn same_value(one: &[u8], other: &[u8]) -> bool {
    // Not all numbers are told apart once they are read.
    if bytes(one) != bytes(other) {
        return false;
    }
    let read = |json| serde_json::from_slice::<Value>(json);
    match (read(one), read(other)) {
        (Ok(one), Ok(other)) => is_exact(&one) && one == other,
        _ => false,
    }
}

/// How often each byte occurs.
fn bytes(text: &[u8]) -> [usize; 256] {
    let mut count = [0; 256];
    text.iter().for_each(|&byte| count[usize::from(byte)] += 1);
    count
}

/// Whether all numbers were read as they were written: integers over 64 bits are not.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) if number.is_f64() => {
            number.as_f64().is_some_and(|it| it.abs() < 1.8e19)
        }
        Value::Array(items) => items.iter().all(is_exact),
        Value::Object(members) => members.values().all(is_exact),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p6_only_the_order_of_members_makes_no_difference() {
        let same = |one: &str, other: &str| same_value(one.as_bytes(), other.as_bytes());
        assert!(same(r#"{"a":1,"b":[2.5]}"#, r#"{"b":[2.5],"a":1}"#));
        assert!(!same(r#"{"a":1,"b":2}"#, r#"{"b":1,"a":2}"#));
        assert!(!same("[1,2]", "[2,1]"));
        assert!(!same("18446744073709551661", "18446744073709551616"));
        assert!(!same("not", "ton"));
    }

    #[test]
    fn p6_numbers_that_are_read_alike_are_not_the_same() {
        let texts: Vec<String> = (0..10_000_u64)
            .map(|step| f64::from_bits(0.1_f64.to_bits() + step).to_string())
            .collect();
        for (text, next) in texts.iter().zip(&texts[1..]) {
            assert!(
                !same_value(text.as_bytes(), next.as_bytes()),
                "{text} {next}"
            );
        }
    }
}
