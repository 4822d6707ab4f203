//! The tables themselves: their format, their definitions, and what SQLite says of the file.

use diesel::QueryResult;

use super::{Check, Page};
use crate::{
    migrations, queries,
    session::Session,
    verification::{Row, Rule},
};

/// The format is the one of this program.
pub(super) struct Format;

/// The log was pruned up to one position, within what was given.
pub(super) struct Retention;

/// Tables, indexes and views are as this program makes them.
pub(super) struct Objects;

/// The file is as SQLite writes it, and rows refer to rows that are there.
pub(super) struct Integrity;

impl Check for Format {
    const TABLE: &'static str = "de_format";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let formats = queries::formats(&mut session.conn)?;
        let mut page = Page::of(formats.len());
        let known = migrations::FORMAT;
        let found = match formats[..] {
            [found] => found,
            _ => 0,
        };
        if found != known {
            page.find(Self::TABLE, Row::Whole, Rule::Format { found, known });
        }
        Ok(page)
    }
}

impl Check for Retention {
    const TABLE: &'static str = "de_retention";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let conn = &mut session.conn;
        let (rows, given) = (queries::all_pruned_through(conn)?, queries::head(conn)?);
        let mut page = Page::of(rows.len());
        if !matches!(rows[..], [pruned] if (0..=given).contains(&pruned)) {
            page.find(Self::TABLE, Row::Whole, Rule::PrunedThrough { given });
        }
        Ok(page)
    }
}

impl Check for Objects {
    const TABLE: &'static str = "database";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let mut page = Page::of(0);
        for (name, expected) in migrations::objects()? {
            let rule = match queries::definition(&mut session.conn, &name)? {
                Some(found) if found == expected => continue,
                Some(_) => Rule::Altered(name),
                None => Rule::Missing(name),
            };
            page.find(Self::TABLE, Row::Whole, rule);
        }
        Ok(page)
    }
}

/// How many faults SQLite tells.
const MOST_FAULTS: usize = 100;

impl Check for Integrity {
    const TABLE: &'static str = "database";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let conn = &mut session.conn;
        let mut page = Page::of(0);
        for fault in queries::integrity_faults(conn, MOST_FAULTS)? {
            page.find(Self::TABLE, Row::Whole, Rule::Integrity(fault));
        }
        for (table, row, parent) in queries::orphans(conn, MOST_FAULTS)? {
            let tables = ["de_waiting", "de_blocked", "de_started", "de_dead_letters"];
            let table = tables.into_iter().find(|it| *it == table);
            let row = row.map_or(Row::Whole, Row::Number);
            page.find(table.unwrap_or(Self::TABLE), row, Rule::NoParent(parent));
        }
        Ok(page)
    }
}
