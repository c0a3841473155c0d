//! Reads the catalog.
//!
//! What Postgres puts into words (expressions, predicates, what a view takes) it asks the relation itself for, and so waits
//! for whoever alters it; that is asked only where there is such a thing.

use std::collections::HashMap;

use sqlx::postgres::types::Oid;
use sqlx::{PgConnection, query, query_as, query_scalar};

use super::check::{Facts, Rights, check};
use super::table::{Column, HostTable, Key, Kind, NAME, Rows, UniqueIndex, Value};
use crate::postgres::error::DatabaseCause;

/// Where our own tables are; the application's never is.
const OURS: &str = "workos_sync";

/// The columns that an event is about. `created_at` is the application's.
const WRITTEN: [&str; 8] = [
    "id",
    "name",
    "slug",
    "workos_id",
    "workos_updated_at",
    "workos_last_event_id",
    "disabled_at",
    "updated_at",
];

/// Why the application's table can't be looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The database can't be asked.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// `?schema=` names none that can be used. No value of a URL is repeated, not even this one.
    #[error("?schema= of DATABASE_URL names no schema that role {0} may use")]
    NoSuchSchema(String),
    /// `?schema=` names ours.
    #[error("?schema= of DATABASE_URL names the schema of our own tables: name the one of {NAME}")]
    OurSchema,
    /// The search path leads nowhere.
    #[error(
        "the search path of role {0} has no schema that it may use: name that of {NAME} by ?schema= in DATABASE_URL"
    )]
    NoSchema(String),
    /// There is one where nobody would look for it: a second one would be filled beside it.
    #[error(
        "{NAME} is in schema {found}, and not on the search path ({path}): add ?schema={found} to DATABASE_URL"
    )]
    OffThePath {
        /// The schema that has it, or the first of them.
        found: String,
        /// Where it was looked for.
        path: String,
    },
}

impl DatabaseCause for LookupError {
    fn database_cause(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Database(error) => Some(error),
            _ => None,
        }
    }
}

impl HostTable {
    /// Looks the table up along the search path, `schema` first, and reads what it is (R32, R33).
    ///
    /// # Errors
    /// The database can't be asked, or it isn't clear which table is meant.
    pub async fn read(
        connection: &mut PgConnection,
        schema: Option<&str>,
    ) -> Result<Self, LookupError> {
        let database = Database::read(connection, schema).await?;
        let mut facts = Facts {
            table: Self {
                name: database.new_table,
                schema: database.path[0].clone(),
                kind: Kind::Missing,
                columns: Vec::new(),
                unique: Vec::new(),
                unfilled: Vec::new(),
                findings: Vec::new(),
            },
            role: database.role,
            encoding: database.encoding,
            rights: HashMap::new(),
            row_security: false,
            has_children: false,
            is_updatable: true,
        };
        if let Some(relation) = find(connection, &database.path).await? {
            facts.describe(connection, relation).await?;
        }
        facts.table.findings = check(&facts);
        Ok(facts.table)
    }
}

/// What is to be known before the table is looked for.
struct Database {
    role: String,
    encoding: String,
    /// Where it is looked for; at least one schema.
    path: Vec<String>,
    /// What it would be called where there is none.
    new_table: String,
}

impl Database {
    async fn read(
        connection: &mut PgConnection,
        schema: Option<&str>,
    ) -> Result<Self, LookupError> {
        if schema == Some(OURS) {
            return Err(LookupError::OurSchema);
        }
        let found = query!(
            r#"
            with path as (select coalesce(array_agg(schema order by place), '{}') as path
                          from unnest(current_schemas(false)::text[]) with ordinality as path (schema, place)
                          -- A role that is called as our schema begins with it.
                          where schema <> $2)
            select current_user::text as "role!",
                   pg_encoding_to_char(encoding)::text as "encoding!",
                   path as "path!: Vec<String>",
                   coalesce(has_schema_privilege((select oid from pg_namespace where nspname = $1), 'usage'), false)
                       as "may_use_schema!",
                   quote_ident(coalesce($1, path[1])) || '.' || quote_ident($3) as new_table
            from pg_database, path
            where datname = current_database()
            "#,
            schema,
            OURS,
            NAME,
        )
        .fetch_one(connection)
        .await?;
        if schema.is_some() && !found.may_use_schema {
            return Err(LookupError::NoSuchSchema(found.role));
        }
        let path = schema.map(str::to_owned).into_iter().chain(found.path);
        let path: Vec<_> = path.collect();
        match found.new_table {
            Some(new_table) if !path.is_empty() => Ok(Self {
                role: found.role,
                encoding: found.encoding,
                path,
                new_table,
            }),
            _ => Err(LookupError::NoSchema(found.role)),
        }
    }
}

struct Relation {
    oid: Oid,
    schema: String,
    name: String,
    kind: String,
    row_security: bool,
    has_children: bool,
}

/// The first one along the path.
async fn find(
    connection: &mut PgConnection,
    path: &[String],
) -> Result<Option<Relation>, LookupError> {
    let mut relations = query_as!(
        Relation,
        r#"
        select relation.oid,
               nspname::text as "schema!",
               format('%I.%I', nspname, relname) as "name!",
               relkind::text as "kind!",
               row_security_active(relation.oid) as "row_security!",
               exists (select from pg_inherits where inhparent = relation.oid) as "has_children!"
        from pg_class as relation
                 join pg_namespace as schema on schema.oid = relnamespace
        where relname = $1
          and relkind in ('r', 'p', 'v', 'm', 'f')
          and nspname not in ($2, 'information_schema')
          and nspname !~ '^pg_'
          and has_schema_privilege(schema.oid, 'usage')
        order by array_position($3::text[], nspname::text), nspname
        "#,
        NAME,
        OURS,
        path,
    )
    .fetch_all(connection)
    .await?;
    if relations.is_empty() {
        return Ok(None);
    }
    let first = relations.swap_remove(0);
    if path.contains(&first.schema) {
        return Ok(Some(first));
    }
    Err(LookupError::OffThePath {
        found: first.schema,
        path: path.join(", "),
    })
}

impl Facts {
    async fn describe(
        &mut self,
        connection: &mut PgConnection,
        relation: Relation,
    ) -> Result<(), sqlx::Error> {
        let Relation { oid, .. } = relation;
        let columns = columns(connection, oid).await?;
        self.table.name = relation.name;
        self.table.schema = relation.schema;
        self.table.kind = match &*relation.kind {
            "r" => Kind::Table,
            "p" => Kind::Partitioned,
            "v" => Kind::View,
            "m" => Kind::Other("a materialized view"),
            _ => Kind::Other("a foreign table"),
        };
        self.table.columns = columns.ours;
        self.table.unfilled = columns.unfilled;
        self.table.unique = unique_indexes(connection, oid).await?;
        self.rights = columns.rights;
        self.row_security = relation.row_security;
        self.has_children = relation.has_children;
        if self.table.kind == Kind::View {
            self.is_updatable = is_updatable(connection, oid).await?;
        }
        Ok(())
    }
}

struct Columns {
    ours: Vec<Column>,
    rights: HashMap<String, Rights>,
    unfilled: Vec<String>,
}

async fn columns(connection: &mut PgConnection, table: Oid) -> Result<Columns, sqlx::Error> {
    let found = query!(
        r#"
        with recursive types as (
            select attnum as number, atttypid as type, atttypmod as modifier, attnotnull as not_null,
                   atthasdef or attidentity <> '' as has_default
            from pg_attribute
            where attrelid = $1
              and attnum > 0
              and not attisdropped
            union all
            -- Of a domain, what it is made of.
            select number, typbasetype, typtypmod, not_null or typnotnull, has_default or typdefault is not null
            from types
                     join pg_type on oid = type
            where typtype = 'd'
        )
        select attname::text as "name!",
               format_type(atttypid, atttypmod) as "declared!",
               typname::text as "type!",
               nspname::text as "type_schema!",
               quote_ident(nspname) as "quoted_type_schema!",
               modifier as "modifier!",
               not_null as "not_null!",
               has_default as "has_default!",
               case
                   -- One that triggers write is whatever they make of it.
                   when relkind = 'v' then pg_relation_is_updatable(attrelid, false) & 12 = 12
                       and not pg_column_is_updatable(attrelid, attnum, false)
                   else attgenerated <> '' or attidentity = 'a'
                   end as "is_generated!",
               has_column_privilege(attrelid, attnum, 'select') as "may_select!",
               has_column_privilege(attrelid, attnum, 'insert') as "may_insert!",
               has_column_privilege(attrelid, attnum, 'update') as "may_update!"
        from types
                 join pg_attribute on attrelid = $1 and attnum = number
                 join pg_class on pg_class.oid = attrelid
                 join pg_type on pg_type.oid = type and typtype <> 'd'
                 join pg_namespace on pg_namespace.oid = typnamespace
        order by number
        "#,
        table,
    )
    .fetch_all(connection)
    .await?;

    let mut columns = Columns {
        ours: Vec::new(),
        rights: HashMap::new(),
        unfilled: Vec::new(),
    };
    for column in found {
        let is_written = WRITTEN.contains(&&*column.name);
        // An active organization has no `disabled_at`.
        let is_filled = (is_written && column.name != "disabled_at")
            || (!is_written && (column.has_default || column.is_generated));
        if column.not_null && !is_filled {
            columns.unfilled.push(column.name.clone());
        }
        if !is_written {
            continue;
        }
        columns.rights.insert(
            column.name.clone(),
            Rights {
                select: column.may_select,
                insert: column.may_insert,
                update: column.may_update,
            },
        );
        columns.ours.push(Column {
            value: value(
                &column.r#type,
                &column.type_schema,
                column.quoted_type_schema,
                column.modifier,
            ),
            name: column.name,
            declared: column.declared,
            not_null: column.not_null,
            is_generated: column.is_generated,
        });
    }
    Ok(columns)
}

/// What a type takes. The modifier is -1 where there is none; a length counts itself, with four bytes.
fn value(name: &str, schema: &str, quoted_schema: String, modifier: i32) -> Value {
    let max_length = u32::try_from(modifier - 4).ok();
    // Unlimited, seconds have six digits.
    let precision = u8::try_from(modifier).unwrap_or(6);
    match (schema, name) {
        ("pg_catalog", "text") => Value::Text { max_length: None },
        ("pg_catalog", "varchar") => Value::Text { max_length },
        ("pg_catalog", "bpchar") => Value::Padded { max_length },
        ("pg_catalog", "uuid") => Value::Uuid,
        ("pg_catalog", "timestamptz") => Value::Timestamp {
            with_time_zone: true,
            precision,
        },
        ("pg_catalog", "timestamp") => Value::Timestamp {
            with_time_zone: false,
            precision,
        },
        (_, "citext") => Value::Citext {
            schema: quoted_schema,
        },
        _ => Value::Other,
    }
}

async fn unique_indexes(
    connection: &mut PgConnection,
    table: Oid,
) -> Result<Vec<UniqueIndex>, sqlx::Error> {
    let found = query!(
        r#"
        select relname::text as "name!",
               indisvalid and indisready as "is_valid!",
               case when indpred is not null then pg_get_expr(indpred, indrelid) end as predicate,
               keys.columns as "columns!: Vec<Option<String>>",
               keys.expressions as "expressions!: Vec<Option<String>>"
        from pg_index
                 join pg_class on pg_class.oid = indexrelid
                 cross join lateral (
            select array_agg(attname::text order by place) as columns,
                   array_agg(case when number = 0 then pg_get_indexdef(indexrelid, place::integer, false) end
                             order by place) as expressions
            from unnest(indkey::smallint[]) with ordinality as keys (number, place)
                     left join pg_attribute on attrelid = indrelid and attnum = number
            where place <= indnkeyatts) as keys
        where indrelid = $1
          and indisunique
        order by relname
        "#,
        table,
    )
    .fetch_all(connection)
    .await?;
    Ok(found
        .into_iter()
        .map(|index| {
            let keys: Vec<Key> = std::iter::zip(index.columns, index.expressions)
                .filter_map(|(column, expression)| column.map(Key::Column).or(expression.map(key)))
                .collect();
            UniqueIndex {
                name: index.name,
                rows: index.predicate.map_or(Rows::All, |sql| rows(&keys, sql)),
                keys,
                is_valid: index.is_valid,
            }
        })
        .collect())
}

fn key(expression: String) -> Key {
    // `lower(slug)`, or `lower((slug)::text)`
    match expression.strip_prefix("lower(").and_then(operand) {
        Some(column) => Key::Lower(column.to_owned()),
        None => Key::Expression(expression),
    }
}

/// The rows that a predicate leaves. One that says no more than that the key is not null, or not empty, leaves all
/// that are about an organization of `WorkOS`.
fn rows(keys: &[Key], predicate: String) -> Rows {
    let [Key::Column(column)] = keys else {
        return Rows::Some(predicate);
    };
    let column = column.as_str();
    let mut may_be_empty = true;
    for term in predicate.split(" AND ") {
        let term = term.trim_start_matches('(').trim_end_matches(')');
        if term.strip_suffix(" IS NOT NULL").and_then(operand) == Some(column) {
            continue;
        }
        match term.split_once(" <> ") {
            Some((left, right))
                if operand(left) == Some(column) && operand(right) == Some("''") =>
            {
                may_be_empty = false;
            }
            _ => return Rows::Some(predicate),
        }
    }
    if may_be_empty {
        Rows::All
    } else {
        Rows::NotEmpty(predicate)
    }
}

/// What an operand is about: `slug` of `(slug)::text`. None if it is more than a column or a constant, and a cast.
fn operand(sql: &str) -> Option<&str> {
    let end = sql.find([')', ':']).unwrap_or(sql.len());
    (!sql.contains(' ')).then(|| sql[..end].trim_start_matches('('))
}

/// A view takes new rows and changes, by itself or by triggers.
async fn is_updatable(connection: &mut PgConnection, view: Oid) -> Result<bool, sqlx::Error> {
    // Its bits are those of UPDATE and INSERT.
    query_scalar!(
        r#"select pg_relation_is_updatable($1::oid, true) & 12 = 12 as "is_updatable!""#,
        view,
    )
    .fetch_one(connection)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_of(predicate: &str) -> Rows {
        rows(&[Key::Column("workos_id".to_owned())], predicate.to_owned())
    }

    /// R33: a partial index counts if its predicate is no more than that.
    #[test]
    fn a_predicate_about_the_key_alone_leaves_every_organization() {
        assert_eq!(rows_of("(workos_id IS NOT NULL)"), Rows::All);
        for predicate in [
            "(workos_id <> ''::text)",
            "((workos_id)::text <> ''::text)",
            "(workos_id <> ''::extensions.citext)",
            "((workos_id IS NOT NULL) AND (workos_id <> ''::text))",
            "(((workos_id)::text <> ''::text) AND (workos_id IS NOT NULL))",
        ] {
            let rows = Rows::NotEmpty(predicate.to_owned());
            assert_eq!(rows_of(predicate), rows, "{predicate}");
        }
        for predicate in [
            "(deleted_at IS NULL)",
            "(deleted_at IS NOT NULL)",
            "(workos_id <> 'x'::text)",
            "((workos_id <> ''::text) OR (slug <> ''::text))",
            "((workos_id <> ''::text) AND (deleted_at IS NULL))",
            "(slug <> ''::text)",
            "active",
        ] {
            assert_eq!(rows_of(predicate), Rows::Some(predicate.to_owned()));
        }
    }

    #[test]
    fn lower_is_told_from_other_expressions() {
        for lower in ["lower(slug)", "lower((slug)::text)"] {
            assert_eq!(key(lower.to_owned()), Key::Lower("slug".to_owned()));
        }
        for other in ["upper(slug)", "(slug || name)"] {
            assert_eq!(key(other.to_owned()), Key::Expression(other.to_owned()));
        }
    }
}
