//! Dead letters as lines of JSON, for other tools (F6).

use std::io;

use serde::{Serialize, de::IgnoredAny};

use crate::{DeadLetter, EventMetadata, StoreError, Timestamp, Urgency};

/// Dead letters that were not all written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The store could not be read.
    #[error("the dead letters were not all written: the store could not be read")]
    Store(#[from] StoreError),
    /// What they were written to took no more.
    #[error("the dead letters were not all written")]
    Write(#[from] io::Error),
}

/// All that is known of a letter, but for the payload.
#[derive(Serialize)]
struct Line<'a> {
    number: u64,
    subscription: &'a str,
    reason: &'static str,
    attempts: u32,
    error: &'a str,
    first_attempt_at: Timestamp,
    dead_at: Timestamp,
    event_id: String,
    event_type: &'a str,
    schema_version: u32,
    aggregate_type: &'a str,
    aggregate_id: &'a str,
    urgency: &'static str,
    position: Option<u64>,
    version: Option<u64>,
    occurred_at: Timestamp,
    recorded_at: Option<Timestamp>,
    correlation_id: String,
    causation_id: Option<String>,
    metadata: &'a std::collections::BTreeMap<String, String>,
}

impl DeadLetter {
    /// The letter as one line of JSON, without its end: `number`, `subscription`, `reason`, `attempts`,
    /// `error`, `first_attempt_at`, `dead_at`; of the event `event_id`, `event_type`, `schema_version`,
    /// `aggregate_type`, `aggregate_id`, `urgency`, `position`, `version`, `occurred_at`, `recorded_at`,
    /// `correlation_id`, `causation_id`, `metadata`. Times are RFC 3339 in UTC; what there is not is null.
    ///
    /// The payload is `payload` where it is JSON, written as it was, else its bytes in hexadecimal are
    /// `payload_hex`; one that cannot be encoded is left out.
    ///
    /// ```
    /// # fn show(letter: &domain_events::DeadLetter) {
    /// println!("{}", letter.to_json_line());
    /// # }
    /// ```
    pub fn to_json_line(&self) -> String {
        let event = &*self.event;
        let EventMetadata {
            correlation_id,
            causation_id,
            entries,
        } = event.metadata();
        let recorded = event.recorded();
        let line = Line {
            number: self.number,
            subscription: &self.subscription,
            reason: self.reason.as_str(),
            attempts: self.attempts,
            error: &self.error,
            first_attempt_at: self.first_attempt_at,
            dead_at: self.dead_at,
            event_id: event.id().to_string(),
            event_type: event.event_type(),
            schema_version: event.schema_version(),
            aggregate_type: event.aggregate().aggregate_type(),
            aggregate_id: event.aggregate().id(),
            urgency: match event.urgency() {
                Urgency::Low => "low",
                Urgency::Normal => "normal",
                Urgency::High => "high",
            },
            position: recorded.map(|it| it.position.get()),
            version: recorded.map(|it| it.version.get()),
            occurred_at: event.occurred_at(),
            recorded_at: recorded.map(|it| it.at),
            correlation_id: correlation_id.to_string(),
            causation_id: causation_id.map(|id| id.to_string()),
            metadata: entries,
        };
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        if let Ok(payload) = event.payload()
            // Before the brace that ends it.
            && text.pop().is_some()
        {
            text.push_str(&member(payload));
            text.push('}');
        }
        text
    }
}

fn member(payload: &[u8]) -> String {
    let is_json = serde_json::from_slice::<IgnoredAny>(payload).is_ok();
    match std::str::from_utf8(payload) {
        Ok(json) if is_json => {
            // An end of line in JSON is a space between two parts of it, never in a text.
            let line = json.replace(['\n', '\r'], " ");
            format!(",\"payload\":{line}")
        }
        _ => {
            let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
            format!(",\"payload_hex\":\"{hex}\"")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use serde_json::Value;

    use super::*;
    use crate::{
        AggregateRef, CorrelationId, DeadLetterReason, EventEnvelope, EventId, Position, Recorded,
        Version,
    };

    fn letter(payload: &[u8]) -> DeadLetter {
        let id = EventId::from_bytes([7; 16]);
        let at = Timestamp::from_micros(1_500_000);
        let recorded = Recorded {
            position: Position::new(u64::MAX),
            version: Version::new(3),
            at,
        };
        let metadata = EventMetadata {
            correlation_id: CorrelationId::from(id),
            causation_id: None,
            entries: BTreeMap::from([("who".to_owned(), "ü \"x\"\n".to_owned())]),
        };
        let event = EventEnvelope::from_log(
            id,
            &"shop.placed".into(),
            2,
            AggregateRef::new("order", "o-\u{1}"),
            Urgency::High,
            metadata,
            at,
            recorded,
            payload.into(),
        );
        DeadLetter {
            number: 9,
            subscription: "mail".into(),
            event: Arc::new(event),
            reason: DeadLetterReason::Permanent,
            attempts: 4,
            error: "two\nlines".to_owned(),
            first_attempt_at: at,
            dead_at: at,
        }
    }

    #[test]
    fn f6_a_letter_is_one_line_with_all_that_is_known_of_it() {
        let line = letter(b"{\"a\":\n  12345678901234567890123456789}\r\n").to_json_line();
        assert_eq!(line.lines().count(), 1);
        assert!(
            line.ends_with(",\"payload\":{\"a\":   12345678901234567890123456789}  }"),
            "{line}"
        );
        let told: Value = serde_json::from_str(&line).unwrap();
        let expected = [
            ("number", Value::from(9)),
            ("subscription", "mail".into()),
            ("reason", "permanent".into()),
            ("attempts", 4.into()),
            ("error", "two\nlines".into()),
            ("dead_at", "1970-01-01T00:00:01.500000Z".into()),
            ("event_id", "07070707-0707-0707-0707-070707070707".into()),
            ("event_type", "shop.placed".into()),
            ("schema_version", 2.into()),
            ("aggregate_type", "order".into()),
            ("aggregate_id", "o-\u{1}".into()),
            ("urgency", "high".into()),
            ("position", u64::MAX.into()),
            ("version", 3.into()),
            ("causation_id", Value::Null),
        ];
        for (name, value) in expected {
            assert_eq!(told[name], value, "{name}");
        }
        assert_eq!(told["metadata"]["who"], "ü \"x\"\n");
    }

    #[test]
    fn f6_a_payload_that_is_no_json_is_told_byte_by_byte() {
        for payload in [&b"{\"a\":"[..], &[0xff, 0x00], b""] {
            let line = letter(payload).to_json_line();
            let told: Value = serde_json::from_str(&line).unwrap();
            let hex = told["payload_hex"].as_str().unwrap();
            let bytes = (0..hex.len()).step_by(2);
            let bytes = bytes.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
            assert_eq!(bytes.collect::<Vec<_>>(), payload);
        }
    }
}
