//! Whether a program can read what is stored: the latest event of every type in every schema version.

use std::{collections::BTreeMap, fmt, sync::Arc};

use diesel::QueryResult;
use domain_events::{DecodeError, EventEnvelope, EventRegistry, Position, StoreError};

use crate::{
    SqliteEventStore, queries,
    rows::{signed, unsigned},
    session::Session,
};

/// How many positions are looked through in one transaction.
const STRETCH: i64 = 16_384;

/// Events of a type in a schema version that a program could not handle.
#[derive(Debug)]
pub struct TypeFinding {
    /// The name of the type; empty where it is damaged away.
    pub event_type: String,
    /// The schema version.
    pub schema_version: u32,
    /// The latest of these events, which was tried.
    pub sample: Position,
    /// What is wrong with it.
    pub fault: TypeFault,
}

impl fmt::Display for TypeFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            event_type,
            schema_version,
            sample,
            fault,
        } = self;
        write!(
            f,
            "{event_type:?} in schema version {schema_version}, the latest at position {sample}: {fault}"
        )
    }
}

/// Why a program could not handle an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TypeFault {
    /// Nobody registered the type.
    #[error("the type is not registered")]
    Unknown,
    /// The schema is newer than the one that is registered.
    #[error("{known} is the newest schema version known")]
    Newer {
        /// The schema version that is registered.
        known: u32,
    },
    /// The event could not be read as what is registered.
    #[error("it could not be read: {0}")]
    Unreadable(DecodeError),
}

/// The latest position of each type in each schema version, by the key of the type.
type Samples = BTreeMap<(i64, i64), i64>;

impl SqliteEventStore {
    /// Reads the latest event of every type in every schema version as `registry` would for a
    /// handler. Returns those that it could not; none where all is well.
    ///
    /// Looks through the whole log, in short transactions.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn check_types(
        &self,
        registry: &EventRegistry,
    ) -> Result<Vec<TypeFinding>, StoreError> {
        let mut found = Vec::new();
        for position in self.samples().await?.into_values() {
            let read = move |session: &mut Session| sample(session, position);
            let envelope = self.ask("the event was not read", read).await?;
            let fault = |envelope: &Arc<EventEnvelope>| fault(registry, envelope);
            let finding = envelope.and_then(|it| Some((fault(&it)?, it)));
            found.extend(finding.map(|(fault, envelope)| TypeFinding {
                event_type: envelope.event_type().to_owned(),
                schema_version: envelope.schema_version(),
                sample: Position::new(unsigned(position)),
                fault,
            }));
        }
        Ok(found)
    }

    async fn samples(&self) -> Result<Samples, StoreError> {
        let what = "the log was not looked through";
        let mut samples = Samples::new();
        let head = signed(self.ask(what, Session::head).await?.get());
        let mut after = 0;
        while after < head {
            let last = after.saturating_add(STRETCH);
            let stretch = move |session: &mut Session| {
                queries::last_of_each_schema(&mut session.conn, after, last)
            };
            let latest = self.ask(what, stretch).await?;
            samples.extend(
                latest
                    .into_iter()
                    .map(|(key, version, at)| ((key, version), at)),
            );
            after = last;
        }
        Ok(samples)
    }
}

/// The event at a position, unless it was pruned meanwhile.
fn sample(session: &mut Session, position: i64) -> QueryResult<Option<Arc<EventEnvelope>>> {
    let found = queries::event_at(&mut session.conn, position)?;
    let envelope = |row| session.names.envelope(&mut session.conn, row);
    let envelope = found.first().map(envelope).transpose()?;
    Ok(envelope.map(Arc::new))
}

fn fault(registry: &EventRegistry, envelope: &Arc<EventEnvelope>) -> Option<TypeFault> {
    match registry.decode(envelope).err()? {
        DecodeError::UnknownType { .. } => Some(TypeFault::Unknown),
        DecodeError::Newer { known, .. } => Some(TypeFault::Newer { known }),
        error => Some(TypeFault::Unreadable(error)),
    }
}
