//! Checking a store, whoever runs it meanwhile: page by page, each a short transaction.

mod exceptions;
mod histories;
mod letters;
mod log;
mod progress;
mod records;
mod standings;
mod tables;

use diesel::QueryResult;
use domain_events::{StoreError, StoreErrorKind};

use crate::{
    SqliteEventStore,
    session::Session,
    verification::{Finding, Row, Rule, Verification},
};

/// How many rows are checked in one transaction.
const PAGE: usize = 500;

/// A check that goes through a table page by page.
trait Check: Send + 'static {
    /// The table that is gone through.
    const TABLE: &'static str;

    /// Checks the next page.
    fn page(&mut self, session: &mut Session) -> QueryResult<Page>;
}

/// What was found in a page.
#[derive(Default)]
struct Page {
    findings: Vec<Finding>,
    rows: usize,
    is_last: bool,
}

impl Page {
    /// A page of so many rows, in which nothing was found yet. One that is not full is the last.
    fn of(rows: usize) -> Self {
        Self {
            findings: Vec::new(),
            rows,
            is_last: rows < PAGE,
        }
    }

    fn find(&mut self, table: &'static str, row: Row, rule: Rule) {
        self.findings.push(Finding { table, row, rule });
    }
}

impl SqliteEventStore {
    /// Checks every row: the checksums of all events, that nothing is missing from the log or a
    /// history, and that every delivery stands in one place (R1). What is wrong is not mended.
    ///
    /// Others read and write meanwhile. SQLite's own check of the file is one transaction, during
    /// which the write-ahead log grows; all others are short. Memory is bounded, whatever the size of
    /// the store. A file that nobody runs is checked through [`open_to_read`](Self::open_to_read).
    ///
    /// # Errors
    /// When the store cannot be read, unless that is because it is corrupt: that is a finding.
    pub async fn verify(&self) -> Result<Verification, StoreError> {
        let mut found = Verification::default();
        self.check(tables::Format, &mut found).await?;
        // The other statements are for the tables of this program's format.
        if !found.is_sound() {
            return Ok(found);
        }
        self.check(tables::Objects, &mut found).await?;
        self.check(tables::Integrity, &mut found).await?;
        self.check(tables::Retention, &mut found).await?;
        self.check(log::Log::default(), &mut found).await?;
        self.check(histories::Versions::default(), &mut found)
            .await?;
        self.check(histories::Aggregates::default(), &mut found)
            .await?;
        self.check(progress::Subscriptions::default(), &mut found)
            .await?;
        self.check(exceptions::Waiting::default(), &mut found)
            .await?;
        self.check(exceptions::Blocked::default(), &mut found)
            .await?;
        self.check(exceptions::Started::default(), &mut found)
            .await?;
        self.check(letters::Letters::default(), &mut found).await?;
        self.check(records::EventTypes::default(), &mut found)
            .await?;
        self.check(records::Processing::default(), &mut found)
            .await?;
        self.check(records::Runs::default(), &mut found).await?;
        Ok(found)
    }

    async fn check<C: Check>(
        &self,
        mut check: C,
        found: &mut Verification,
    ) -> Result<(), StoreError> {
        loop {
            let ask = move |session: &mut Session| {
                let page = session.at_once(|session| check.page(session))?;
                Ok((check, page))
            };
            let (same, page) = match self.ask("the store was not checked", ask).await {
                Ok(answer) => answer,
                Err(error) if error.kind() == StoreErrorKind::Corrupt => {
                    found.add(Finding {
                        table: C::TABLE,
                        row: Row::Whole,
                        rule: Rule::Unreadable,
                    });
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            check = same;
            *found.checked.entry(C::TABLE).or_default() += page.rows as u64;
            page.findings.into_iter().for_each(|it| found.add(it));
            if page.is_last {
                return Ok(());
            }
        }
    }
}
