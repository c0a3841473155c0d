//! What keeps the application's table from working, in sentences: `migrate`, the start of `serve` and `readyz` say the
//! same (R33). Each names the column, what it is, and what it has to be.

use std::collections::HashMap;

use super::table::{Column, Finding, HostTable, Kind, NAME, Severity, Value};

/// A derived organization id is a UUID as text.
const DERIVED_ID: u32 = 36;

/// `org_` and a ULID.
const WORKOS_ID: u32 = 30;

/// The longest of the ids that are made: `snapshot_` and a ULID.
const EVENT_ID: u32 = 35;

/// What an update of ours writes.
const UPDATED: [&str; 6] = [
    "name",
    "workos_id",
    "workos_updated_at",
    "workos_last_event_id",
    "disabled_at",
    "updated_at",
];

/// What the catalog says, before it is judged.
#[derive(Debug)]
pub(super) struct Facts {
    /// Without findings.
    pub(super) table: HostTable,
    /// The role that asks.
    pub(super) role: String,
    /// The encoding of the database.
    pub(super) encoding: String,
    /// The role's rights, by column.
    pub(super) rights: HashMap<String, Rights>,
    /// Row level security applies to the role.
    pub(super) row_security: bool,
    /// Tables inherit from it.
    pub(super) has_children: bool,
    /// It can be written to.
    pub(super) is_updatable: bool,
}

/// What a role may do with a column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rights {
    pub(super) select: bool,
    pub(super) insert: bool,
    pub(super) update: bool,
}

/// What a column is for, and so what it has to be.
enum Purpose {
    /// The organization's own id, which the application chose.
    Id,
    /// Text of any length.
    Text,
    /// An id of `WorkOS`, of at least so many characters.
    WorkosId(u32),
    Time,
}

impl Purpose {
    const fn expected(&self) -> &'static str {
        match self {
            Self::Id => "text, varchar, citext, char(n) or uuid",
            Self::Text | Self::WorkosId(_) => "text, varchar, citext or char(n)",
            Self::Time => "timestamptz or timestamp",
        }
    }

    const fn takes(&self, value: &Value) -> bool {
        match value {
            Value::Text { .. } | Value::Padded { .. } | Value::Citext { .. } => {
                !matches!(self, Self::Time)
            }
            Value::Uuid => matches!(self, Self::Id),
            Value::Timestamp { .. } => matches!(self, Self::Time),
            Value::Other => false,
        }
    }
}

/// The columns, what for, and whether `migrate` adds them.
const COLUMNS: [(&str, Purpose, bool); 8] = [
    ("id", Purpose::Id, false),
    ("name", Purpose::Text, false),
    ("slug", Purpose::Text, false),
    ("workos_id", Purpose::WorkosId(WORKOS_ID), true),
    ("workos_updated_at", Purpose::Time, true),
    ("workos_last_event_id", Purpose::WorkosId(EVENT_ID), true),
    ("disabled_at", Purpose::Time, true),
    ("updated_at", Purpose::Time, true),
];

/// Judges a table.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    if !matches!(&*facts.encoding, "UTF8" | "SQL_ASCII") {
        findings.error(format!(
            "the encoding of the database is {}: it has to be UTF8, for organizations have names in every script",
            facts.encoding,
        ));
    }
    let table = &facts.table;
    let name = &table.name;
    match table.kind {
        Kind::Missing => findings.unmade(format!(
            "there is no {NAME}: `workos-sync migrate` creates {name}"
        )),
        Kind::Partitioned => findings.error(format!(
            "{name} is partitioned: it has to be a plain table, so that workos_id can be unique in all of it"
        )),
        Kind::Other(kind) => findings.error(format!(
            "{name} is {kind}: it has to be a table, or a view that can be written to"
        )),
        Kind::View if !facts.is_updatable => findings.error(format!(
            "{name} is a view that can't be written to: it has to take INSERT and UPDATE"
        )),
        Kind::Table | Kind::View => {
            for (column, purpose, is_added) in &COLUMNS {
                match table.column(column) {
                    Some(found) => findings.column(name, found, purpose),
                    None if *is_added && table.kind == Kind::Table => findings.unmade(format!(
                        "{name} has no column {column}: `workos-sync migrate` adds it"
                    )),
                    None => findings.error(format!(
                        "{name} has no column {column}: it has to have one, of type {}",
                        purpose.expected(),
                    )),
                }
            }
            if table.kind == Kind::Table {
                findings.keys(table);
            }
            findings.rights(facts);
            findings.surroundings(facts);
        }
    }
    // What `migrate` makes of a table is of no use before it can work.
    let mut findings = findings.0;
    if findings
        .iter()
        .any(|finding| finding.severity == Severity::Error)
    {
        findings.retain(|finding| finding.severity != Severity::Unmade);
    }
    findings
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, sentence: String) {
        self.0.push(Finding { severity, sentence });
    }

    fn unmade(&mut self, sentence: String) {
        self.add(Severity::Unmade, sentence);
    }

    fn error(&mut self, sentence: String) {
        self.add(Severity::Error, sentence);
    }

    fn warning(&mut self, sentence: String) {
        self.add(Severity::Warning, sentence);
    }

    fn column(&mut self, table: &str, column: &Column, purpose: &Purpose) {
        let Column { name, declared, .. } = column;
        if !purpose.takes(&column.value) {
            self.error(format!(
                "column {name} of {table} is {declared}: it has to be {}",
                purpose.expected(),
            ));
        } else if column.is_generated {
            self.error(format!(
                "column {name} of {table} is generated: it has to be a plain column, for workos-sync writes it"
            ));
        }
        match (purpose, column.max_length()) {
            (Purpose::WorkosId(needed), Some(length)) if length < *needed => self.error(format!(
                "column {name} of {table} is {declared}: it has to hold {needed} characters"
            )),
            (Purpose::Id, Some(length)) if length < DERIVED_ID => self.warning(format!(
                "column {name} of {table} is {declared}: an id derived from that of WorkOS has {DERIVED_ID} characters, \
                 so an organization without external_id can't be created"
            )),
            _ => {}
        }
    }

    fn keys(&mut self, table: &HostTable) {
        let name = &table.name;
        if table.column("id").is_some() && table.unique_by("id").is_none() {
            self.error(format!(
                "column id of {name} isn't unique: it has to be the primary key, or have a valid unique index of its own"
            ));
        }
        if table.column("workos_id").is_some() && table.unique_by("workos_id").is_none() {
            match table.unique_in_part("workos_id") {
                Some((index, rows)) => self.error(format!(
                    "column workos_id of {name} is unique only where {rows} (index {index}): it has to be unique in all \
                     rows, so give the others no workos_id, and drop that index"
                )),
                None => self.unmade(format!(
                    "column workos_id of {name} isn't unique: `workos-sync migrate` builds an index"
                )),
            }
        }
        if table.column("slug").is_some() && table.unique_covering("slug").next().is_none() {
            self.warning(format!(
                "column slug of {name} has no unique index: nothing keeps two organizations from having one slug, and \
                 each creation reads the whole table"
            ));
        }
    }

    fn rights(&mut self, facts: &Facts) {
        let Facts {
            table,
            role,
            rights,
            ..
        } = facts;
        let name = &table.name;
        let lacking = |columns: &[&str], may: fn(&Rights) -> bool| {
            let columns: Vec<_> = columns
                .iter()
                .copied()
                .filter(|column| rights.get(*column).is_some_and(|rights| !may(rights)))
                .collect();
            (!columns.is_empty()).then(|| columns.join(", "))
        };
        // What is written is read too, but for `updated_at`.
        let read = COLUMNS.map(|(column, _, _)| column);
        if let Some(columns) = lacking(&read[..read.len() - 1], |rights| rights.select) {
            self.error(format!(
                "role {role} may not SELECT {columns} of {name}: it has to have that right"
            ));
        }
        if let Some(columns) = lacking(&UPDATED, |rights| rights.update) {
            self.error(format!(
                "role {role} may not UPDATE {columns} of {name}: it has to have that right"
            ));
        }
        if let Some(columns) = lacking(&read, |rights| rights.insert) {
            self.warning(format!(
                "role {role} may not INSERT {columns} into {name}: an organization that has no row yet can't be created"
            ));
        }
    }

    fn surroundings(&mut self, facts: &Facts) {
        let Facts { table, role, .. } = facts;
        let name = &table.name;
        for column in &table.unfilled {
            self.warning(format!(
                "column {column} of {name} is NOT NULL without a default, and workos-sync leaves it null: an \
                 organization that has no row yet can't be created"
            ));
        }
        if facts.row_security {
            self.warning(format!(
                "row level security of {name} applies to role {role}: a row that a policy hides is taken for missing, \
                 and what a policy refuses is a dead letter"
            ));
        }
        if facts.has_children {
            self.warning(format!(
                "tables inherit from {name}: their rows are taken for its own, though no key is unique across them"
            ));
        }
        if table.kind == Kind::View {
            self.warning(format!(
                "{name} is a view: whether id, workos_id and slug are unique in the table behind it, and what else \
                 that refuses, can't be seen"
            ));
        }
    }
}
