//! What the application's table is, as the catalog has it.

use std::borrow::Cow;
use std::fmt;

use uuid::Uuid;

use super::LookupError;

/// The name that the table has in every application: as a table, or as a view that maps one.
pub const NAME: &str = "organization_metadata";

/// The application's table, as it was found in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTable {
    /// Its name with its schema, quoted where SQL needs it: what every statement calls it (R32).
    pub name: String,
    /// The schema, as it is.
    pub schema: String,
    /// What it is.
    pub kind: Kind,
    /// Those of the nine columns that it has. The others are the application's own.
    pub columns: Vec<Column>,
    /// Its unique indexes, valid or not.
    pub unique: Vec<UniqueIndex>,
    /// Columns that a new row of ours leaves null, though they are NOT NULL.
    pub unfilled: Vec<String>,
    /// What keeps it from working, and what is to be known of it: see [`HostTable::is_usable`].
    pub findings: Vec<Finding>,
}

/// What a relation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// There is none: `name` is where it is going to be created.
    Missing,
    /// A table of its own.
    Table,
    /// A partitioned table.
    Partitioned,
    /// A view; its keys and constraints are those of what it shows, and can't be seen.
    View,
    /// Anything else that can be called so.
    Other(&'static str),
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name: one of ours, so it needs no quotes.
    pub name: String,
    /// Its type as the application declared it: `character varying(50)`.
    pub declared: String,
    /// Its type, or of a domain the type below it.
    pub value: Value,
    /// It takes no null.
    pub not_null: bool,
    /// It can't be given a value: GENERATED ALWAYS, or computed by a view.
    pub is_generated: bool,
}

/// What values a column takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `text`, or `varchar` of at most so many characters.
    Text {
        /// In characters.
        max_length: Option<u32>,
    },
    /// `char(n)`: padded with blanks, which are no part of the value.
    Padded {
        /// In characters; none is `bpchar`, which isn't padded.
        max_length: Option<u32>,
    },
    /// `citext`: text that ignores case. It comes with an extension, in whatever schema.
    Citext {
        /// The schema of the extension, quoted where SQL needs it.
        schema: String,
    },
    /// `uuid`.
    Uuid,
    /// A time.
    Timestamp {
        /// `timestamptz`; else `timestamp`, which holds UTC.
        with_time_zone: bool,
        /// How many digits its seconds have behind the point: 0 to 6.
        precision: u8,
    },
    /// No type that takes a value of ours.
    Other,
}

/// A unique index, or the index of a constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueIndex {
    /// Its name, by which a violation names it.
    pub name: String,
    /// What it keeps unique, in order.
    pub keys: Vec<Key>,
    /// The rows that it is about.
    pub rows: Rows,
    /// It isn't what a broken-off or failed build left behind.
    pub is_valid: bool,
}

/// What an index compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// A column, by its type and collation.
    Column(String),
    /// `lower(column)`.
    Lower(String),
    /// Another expression.
    Expression(String),
}

/// The rows of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rows {
    /// All of them, or all whose key is not null: nulls are never equal.
    All,
    /// All whose key is not empty: the predicate, as SQL. A look-up goes by the index only if it says so too.
    NotEmpty(String),
    /// Some of them: the predicate, as SQL.
    Some(String),
}

/// Something to be known of the table, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Names the column, what it is, and what it has to be.
    pub sentence: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Something is missing that `workos-sync migrate` makes; until then, no event can be applied, or not rightly.
    Unmade,
    /// No event can be applied, or not rightly, until the application's table is changed.
    Error,
    /// Some events will be dead letters, or it can't be told.
    Warning,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl HostTable {
    /// Nothing keeps events from being applied.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        !self.has(Severity::Unmade) && !self.has(Severity::Error)
    }

    /// What keeps events from being applied.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        let findings = self.findings.iter();
        findings.filter(|finding| finding.severity != Severity::Warning)
    }

    /// What keeps events from being applied, a line each.
    #[must_use]
    pub fn why_unusable(&self) -> String {
        let errors: Vec<_> = self.errors().map(ToString::to_string).collect();
        errors.join("\n")
    }

    /// What is to be known beside.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        let findings = self.findings.iter();
        findings.filter(|finding| finding.severity == Severity::Warning)
    }

    /// Says whether there is such a finding.
    #[must_use]
    pub fn has(&self, severity: Severity) -> bool {
        let mut findings = self.findings.iter();
        findings.any(|finding| finding.severity == severity)
    }

    /// The table, where what it lacks couldn't be made, for these reasons.
    #[must_use]
    pub(in crate::entities::organization) fn with(mut self, reasons: Vec<Finding>) -> Self {
        if !reasons.is_empty() {
            let findings = &mut self.findings;
            findings.retain(|finding| finding.severity != Severity::Unmade);
            findings.splice(..0, reasons);
        }
        self
    }

    /// The table, where it isn't clear any more which one it is.
    pub(in crate::entities::organization) fn lost(&self, why: &LookupError) -> Self {
        Self {
            findings: vec![Finding {
                severity: Severity::Error,
                sentence: why.to_string(),
            }],
            ..self.clone()
        }
    }

    /// One of the nine columns, if it is there.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The index that keeps a column alone unique, and by which it is looked up.
    #[must_use]
    pub fn unique_by(&self, column: &str) -> Option<&UniqueIndex> {
        self.unique.iter().find(|index| {
            index.is_valid && index.is_of(column) && !matches!(index.rows, Rows::Some(_))
        })
    }

    /// The index that keeps a column unique in some rows, and those rows.
    #[must_use]
    pub fn unique_in_part(&self, column: &str) -> Option<(&str, &str)> {
        self.unique.iter().find_map(|index| match &index.rows {
            Rows::Some(rows) if index.is_valid && index.is_of(column) => {
                Some((index.name.as_str(), rows.as_str()))
            }
            _ => None,
        })
    }

    /// The valid unique indexes that a column, or `lower` of it, has a part in: those that say what "taken" means.
    pub fn unique_covering(&self, column: &str) -> impl Iterator<Item = &UniqueIndex> {
        self.unique.iter().filter(move |index| {
            index.is_valid
                && index.keys.iter().any(
                    |key| matches!(key, Key::Column(name) | Key::Lower(name) if name == column),
                )
        })
    }
}

impl UniqueIndex {
    /// A column has a part in it, as far as can be told.
    pub(in crate::entities::organization) fn may_cover(&self, column: &str) -> bool {
        self.keys.iter().any(|key| match key {
            Key::Column(name) | Key::Lower(name) => name == column,
            Key::Expression(_) => true,
        })
    }

    /// It is about this column, and no other.
    pub(super) fn is_of(&self, column: &str) -> bool {
        matches!(&self.keys[..], [Key::Column(key)] if key == column)
    }
}

impl Column {
    /// The type that a text parameter is cast to, so that the column's index can be asked with it.
    #[must_use]
    pub fn cast(&self) -> String {
        match &self.value {
            Value::Text { .. } | Value::Other => "text".to_owned(),
            // Not `character`, which is one of length 1.
            Value::Padded { .. } => "bpchar".to_owned(),
            Value::Citext { schema } => format!("{schema}.citext"),
            Value::Uuid => "uuid".to_owned(),
            Value::Timestamp {
                with_time_zone: true,
                ..
            } => "timestamptz".to_owned(),
            Value::Timestamp { .. } => "timestamp".to_owned(),
        }
    }

    /// The operator by which the column's index compares. That of an extension is named with its schema: off the
    /// search path, `=` would be another one.
    #[must_use]
    pub fn equals(&self) -> String {
        match &self.value {
            Value::Citext { schema } => format!("operator({schema}.=)"),
            _ => "=".to_owned(),
        }
    }

    /// Two values are equal in it, as far as that can be told without asking the database.
    #[must_use]
    pub fn holds_equal(&self, a: &str, b: &str) -> bool {
        self.normal(a) == self.normal(b)
    }

    /// The form by which a value is compared.
    fn normal<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.value {
            Value::Padded { .. } => text.trim_end_matches(' ').into(),
            Value::Citext { .. } => text.to_lowercase().into(),
            Value::Uuid => match Uuid::try_parse(text) {
                Ok(uuid) => uuid.hyphenated().to_string().into(),
                Err(_) => text.into(),
            },
            _ => text.into(),
        }
    }

    /// How many characters it holds, if that is limited.
    #[must_use]
    pub const fn max_length(&self) -> Option<u32> {
        match self.value {
            Value::Text { max_length } | Value::Padded { max_length } => max_length,
            _ => None,
        }
    }
}
