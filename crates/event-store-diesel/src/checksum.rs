//! What tells a stored event from a damaged one: a CRC-32 over all its columns and its names.

use crc32fast::Hasher;
use domain_events::AggregateRef;

use crate::rows::EventRow;

/// The checksum of `row`. The names behind its keys are part of it, so that a damaged name shows.
pub(crate) fn checksum(row: &EventRow<'_>, event_type: &str, aggregate: &AggregateRef) -> i64 {
    let mut sum = Sum::new();
    let numbers = [
        row.position,
        row.type_key,
        row.aggregate_key,
        row.version,
        row.schema_version,
        row.urgency,
        row.occurred_at,
        row.recorded_at,
    ];
    sum.update(numbers.map(i64::to_le_bytes).as_flattened());
    let names = [event_type, aggregate.aggregate_type(), aggregate.id()];
    for bytes in [&row.event_id[..], row.payload, &row.correlation_id[..]] {
        sum.add(bytes);
    }
    for text in names {
        sum.add(text.as_bytes());
    }
    sum.add_optional(row.metadata.map(str::as_bytes));
    sum.add_optional(row.causation_id.map(|id| &id[..]));
    sum.finish()
}

/// A CRC-32 that gathers what it is given: a few long pieces take a third of the time of many
/// short ones.
struct Sum {
    crc: Hasher,
    gathered: [u8; 512],
    len: usize,
}

impl Sum {
    fn new() -> Self {
        Self {
            crc: Hasher::new(),
            gathered: [0; 512],
            len: 0,
        }
    }

    // Inlined, so that what has a known length is copied without a call.
    #[inline(always)]
    fn update(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if let Some(room) = self.gathered.get_mut(self.len..end) {
            room.copy_from_slice(bytes);
            self.len = end;
            return;
        }
        self.pass_on(bytes);
    }

    #[inline(never)]
    fn pass_on(&mut self, bytes: &[u8]) {
        self.crc.update(&self.gathered[..self.len]);
        self.len = 0;
        self.crc.update(bytes);
    }

    /// Adds the length too, so that no byte can move from one column to the next unseen.
    fn add(&mut self, bytes: &[u8]) {
        self.update(&(bytes.len() as u64).to_le_bytes());
        self.update(bytes);
    }

    fn add_optional(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.add(bytes),
            // No length is that long, so nothing is told from something empty.
            None => self.update(&u64::MAX.to_le_bytes()),
        }
    }

    fn finish(mut self) -> i64 {
        self.crc.update(&self.gathered[..self.len]);
        i64::from(self.crc.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<'a>() -> EventRow<'a> {
        EventRow {
            position: 1,
            event_id: &[1; 16],
            type_key: 2,
            aggregate_key: 3,
            version: 4,
            schema_version: 5,
            urgency: 1,
            payload: b"{}",
            metadata: None,
            correlation_id: &[6; 16],
            causation_id: None,
            occurred_at: 7,
            recorded_at: 8,
            checksum: 0,
        }
    }

    #[test]
    fn how_it_is_gathered_makes_no_difference() {
        let bytes: Vec<u8> = (0..3_000_u16).map(|it| it.to_le_bytes()[0]).collect();
        for piece in [1, 7, 64, 511, 512, 513, 1_000, 3_000] {
            let mut sum = Sum::new();
            bytes.chunks(piece).for_each(|it| sum.update(it));
            assert_eq!(sum.finish(), i64::from(crc32fast::hash(&bytes)));
        }
    }

    #[test]
    fn every_column_and_every_name_counts() {
        let aggregate = AggregateRef::new("order", "1");
        let sum = |row: &EventRow<'_>| checksum(row, "placed", &aggregate);
        let variants = [
            EventRow {
                position: 9,
                ..row()
            },
            EventRow {
                event_id: &[9; 16],
                ..row()
            },
            EventRow {
                type_key: 9,
                ..row()
            },
            EventRow {
                aggregate_key: 9,
                ..row()
            },
            EventRow {
                version: 9,
                ..row()
            },
            EventRow {
                schema_version: 9,
                ..row()
            },
            EventRow {
                urgency: 9,
                ..row()
            },
            EventRow {
                payload: b"{ }",
                ..row()
            },
            EventRow {
                metadata: Some(""),
                ..row()
            },
            EventRow {
                correlation_id: &[9; 16],
                ..row()
            },
            EventRow {
                causation_id: Some(&[0; 16]),
                ..row()
            },
            EventRow {
                occurred_at: 9,
                ..row()
            },
            EventRow {
                recorded_at: 9,
                ..row()
            },
        ];
        let mut sums: Vec<i64> = variants.iter().map(sum).collect();
        sums.push(sum(&row()));
        sums.push(checksum(&row(), "place", &aggregate));
        sums.push(checksum(&row(), "placed", &AggregateRef::new("orde", "r1")));
        let count = sums.len();
        sums.sort_unstable();
        sums.dedup();
        assert_eq!(sums.len(), count);
    }
}
