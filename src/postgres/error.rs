//! What a database error means for the event that met it: the only place that knows SQLSTATEs (R26).
//!
//! Classes go by SQLSTATE, never by message text: messages are translated
//! (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).

use std::borrow::Cow;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// What to do about an event that could not be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// Another writer was in the way: try again at once, from the fetch on, a few times.
    Conflict,
    /// The database is away, overloaded or too slow: try again later, for ever.
    Transient,
    /// A right, a table or a column is missing. While nothing else is applied either, the schema is at fault, not the
    /// event.
    Unusable,
    /// The host application refuses the row: try a few times, then it is a dead letter.
    Refused,
    /// What the event contains can't be stored: a dead letter.
    Permanent,
}

impl FailureClass {
    /// Every class.
    pub const ALL: [Self; 5] = [
        Self::Conflict,
        Self::Transient,
        Self::Unusable,
        Self::Refused,
        Self::Permanent,
    ];
}

/// An error that may have come from the database.
pub trait DatabaseCause {
    /// What the database, or the connection to it, said.
    fn database_cause(&self) -> Option<&sqlx::Error>;

    /// Whether the connection that met it is of no use any more.
    fn ends_the_connection(&self) -> bool {
        self.database_cause().is_some_and(ends_the_connection)
    }
}

impl DatabaseCause for sqlx::Error {
    fn database_cause(&self) -> Option<&sqlx::Error> {
        Some(self)
    }
}

/// Classes a database error.
#[must_use]
pub fn classify(error: &sqlx::Error) -> FailureClass {
    if is_an_outage(error) {
        return FailureClass::Transient;
    }
    // The next connection has none.
    if has_old_plans(error) {
        return FailureClass::Conflict;
    }
    // Without a SQLSTATE it is a value that can't be decoded, or a bug of a driver: no wait mends that.
    let code = code(error).unwrap_or_default();
    match class_of(&code) {
        // Whatever code a trigger raises is the host's word; but what says that waiting helps is believed.
        _ if is_raised(error) && !code.starts_with("40") && !code.starts_with("57") => {
            FailureClass::Refused
        }
        class => class,
    }
}

/// Says whether it is a RAISE of a trigger or a function of the host.
fn is_raised(error: &sqlx::Error) -> bool {
    server_error(error).is_some_and(|error| error.routine() == Some("exec_stmt_raise"))
}

/// The class of an error that trying again at once didn't help.
#[must_use]
pub fn classify_lasting(error: &sqlx::Error) -> FailureClass {
    match classify(error) {
        // Unlucky again; or a pooler keeps connections with old plans.
        FailureClass::Conflict if is_rolled_back(error) || has_old_plans(error) => {
            FailureClass::Transient
        }
        FailureClass::Conflict => FailureClass::Refused,
        class => class,
    }
}

/// What a SQLSTATE says of the event that met it. What isn't known says that the host refuses it: a trigger can raise
/// whatever it likes, and a dead letter is seen, where an event that is retried for ever isn't (R26).
fn class_of(code: &str) -> FailureClass {
    match code {
        // unique_violation
        "23505" => FailureClass::Conflict,
        // program_limit_exceeded, statement_too_complex: what the event contains is too large for an index.
        "54000" | "54001" => FailureClass::Permanent,
        // string_data_right_truncation: the host says how long a column is.
        "22001" => FailureClass::Refused,
        // read_only_sql_transaction, lock_not_available
        "25006" | "55P03" => FailureClass::Transient,
        _ => match code.get(..2) {
            // transaction_rollback: serialization_failure, deadlock_detected
            Some("40") => FailureClass::Conflict,
            // Data exception: a value that no retry makes storable.
            Some("22") => FailureClass::Permanent,
            // insufficient_resources, operator_intervention (timeouts among it), system_error
            Some("53" | "57" | "58") => FailureClass::Transient,
            // syntax_error_or_access_rule_violation, invalid_schema_name
            Some("42" | "3F") => FailureClass::Unusable,
            // Integrity constraints (23, 44), triggers (09, 27, P0, whatever they raise), and all the rest.
            _ => FailureClass::Refused,
        },
    }
}

fn code(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error()?.code()
}

fn server_error(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// Says whether the server ended the session with this error: a shutdown, too many connections, a refused login.
fn is_fatal(error: &sqlx::Error) -> bool {
    server_error(error)
        .is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Says whether the error is about the database as a whole, so that any other statement would meet it too: no
/// connection, too many of them, a server that starts or stops, one that only reads.
#[must_use]
pub fn is_an_outage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Configuration(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(_) if is_raised(error) => false,
        sqlx::Error::Database(_) => {
            is_fatal(error)
                || code(error).is_some_and(|code| code.starts_with("57P") || code == "25006")
        }
        _ => false,
    }
}

/// Says whether the connection that met this error is of no use any more, though it may still answer: its server only
/// reads, so that a new connection leads elsewhere after a failover; its plans are of a table that has changed; or it
/// isn't known what it would answer next.
#[must_use]
pub fn ends_the_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(_) => {
            is_fatal(error)
                || ages_the_pool(error)
                || code(error).is_some_and(|code| code.starts_with("57P"))
        }
        _ => false,
    }
}

/// Says whether the other connections of the pool would meet the same error, being as old: they led to the server that
/// only reads now (`read_only_sql_transaction`), or have plans of the table that has changed.
#[must_use]
pub fn ages_the_pool(error: &sqlx::Error) -> bool {
    has_old_plans(error) || code(error).is_some_and(|code| code == "25006")
}

/// Says whether the session has plans of a table that has changed. The SQLSTATEs mean much else, so it is told by where in
/// the server they come from.
fn has_old_plans(error: &sqlx::Error) -> bool {
    let Some(error) = server_error(error) else {
        return false;
    };
    let routine = error.routine().unwrap_or_default();
    match error.code() {
        // feature_not_supported: "cached plan must not change result type"
        "0A000" => routine == "RevalidateCachedQuery",
        // datatype_mismatch: "type of parameter 1 does not match that when preparing the plan", in a trigger of the host
        "42804" => routine.starts_with("plpgsql_param_eval"),
        // invalid_sql_statement_name
        "26000" => true,
        _ => false,
    }
}

/// The unique index or exclusion constraint that holds a value which is there already.
#[must_use]
pub fn taken_by(error: &sqlx::Error) -> Option<&str> {
    match &*code(error)? {
        // unique_violation, exclusion_violation
        "23505" | "23P01" => error.as_database_error()?.constraint(),
        _ => None,
    }
}

/// Says whether a value is longer than its column (`string_data_right_truncation`).
#[must_use]
pub fn is_too_long(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| code == "22001")
}

/// Says whether a statement may have failed because a table isn't what it was, or isn't there any more.
#[must_use]
pub fn is_about_the_table(error: &sqlx::Error) -> bool {
    match error {
        // Of another type than the statement is made for.
        sqlx::Error::ColumnDecode { .. } => true,
        _ => {
            has_old_plans(error)
                || code(error).is_some_and(|code| {
                    // string_data_right_truncation; syntax_error_or_access_rule_violation, invalid_schema_name
                    code == "22001" || code.starts_with("42") || code.starts_with("3F")
                })
        }
    }
}

/// Says whether a lock was waited for in vain (`lock_not_available`).
#[must_use]
pub fn is_lock_timeout(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| code == "55P03") && !is_raised(error)
}

/// Says whether Postgres broke the transaction off to let another one pass (class 40): a deadlock, a serialization
/// failure.
#[must_use]
pub fn is_rolled_back(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| code.starts_with("40"))
}

/// Says whether the database refused the statement because of what the values hold: sent again, it would be
/// refused again.
#[must_use]
pub fn is_about_the_content(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(_)) && classify(error) == FailureClass::Permanent
}

/// Says whether a connection failed for what a setting says, here or on the server: no wait mends that.
#[must_use]
pub fn is_a_misconfiguration(error: &sqlx::Error) -> bool {
    match error {
        // invalid_authorization_specification and invalid_password; invalid_catalog_name; insufficient_privilege:
        // no right to connect
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| code.starts_with("28") || code == "3D000" || code == "42501"),
        // No TLS where it is required, a certificate or a key that is none.
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => true,
        error => tls_error(error).is_some(),
    }
}

/// Why TLS failed: where the peers don't agree, sqlx sees an I/O error.
fn tls_error(error: &sqlx::Error) -> Option<&rustls::Error> {
    match error {
        sqlx::Error::Io(error) => error.get_ref()?.downcast_ref(),
        sqlx::Error::Tls(error) => error.downcast_ref(),
        _ => None,
    }
}

/// A short and stable key of the error, equal for equal failures (R27).
#[must_use]
pub fn cause(error: &sqlx::Error) -> String {
    let Some(error) = error.as_database_error() else {
        return match error {
            sqlx::Error::ColumnDecode { index, .. } => format!("decode:column.{index}"),
            sqlx::Error::Io(_) => "database:io".to_owned(),
            _ => "database:driver".to_owned(),
        };
    };
    let code = error.code().unwrap_or_default();
    let column = error
        .try_downcast_ref::<PgDatabaseError>()
        .and_then(PgDatabaseError::column);
    let (kind, name) = match &*code {
        "23502" => ("not_null", column),
        "23503" => ("foreign_key", error.constraint()),
        "23505" => ("unique", error.constraint()),
        "23514" => ("check", error.constraint()),
        "23P01" => ("exclusion", error.constraint()),
        _ => ("sqlstate", None),
    };
    match name {
        Some(name) => format!("{kind}:{name}"),
        None => format!("sqlstate:{code}"),
    }
}

/// The error as an operator wants to read it in `last_error`: message, SQLSTATE, and the names of constraint and column.
/// Never the values: these may be long, or secret.
#[must_use]
pub fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => describe_answer(&**error),
        // sqlx would name the file; a setting's value isn't repeated (R35).
        sqlx::Error::Tls(error) if error.to_string().starts_with("Invalid certificate ") => {
            "TLS: sslrootcert holds something that is no certificate".to_owned()
        }
        other => match tls_error(other) {
            Some(error) => describe_tls(error),
            None => other.to_string(),
        },
    }
}

fn describe_answer(error: &dyn DatabaseError) -> String {
    let mut text = error.message().to_owned();
    let Some(code) = error.code() else {
        return text;
    };
    if code == "22001" {
        text.push_str(": a value is longer than its column");
    }
    text = format!("{text} (SQLSTATE {code}");
    if let Some(constraint) = error.constraint() {
        text = format!("{text}, constraint {constraint}");
    }
    let column = error.try_downcast_ref::<PgDatabaseError>();
    if let Some(column) = column.and_then(PgDatabaseError::column) {
        text = format!("{text}, column {column}");
    }
    text.push(')');
    text
}

fn describe_tls(error: &rustls::Error) -> String {
    use rustls::CertificateError::{Other, UnknownIssuer};
    use rustls::Error::InvalidCertificate;

    match error {
        InvalidCertificate(UnknownIssuer) => {
            "TLS: the server's certificate is signed by an unknown CA; name the CA's certificate as sslrootcert"
                .to_owned()
        }
        // The verifier's own error, which rustls doesn't know.
        InvalidCertificate(Other(cause)) if cause.to_string() == "CaUsedAsEndEntity" => {
            "TLS: the server's certificate is a CA: give the server a certificate of its own, signed by that CA"
                .to_owned()
        }
        error => format!("TLS: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R35: the path of a certificate is a value of `DATABASE_URL`.
    #[test]
    fn a_file_that_is_no_certificate_is_not_named() {
        let error = sqlx::Error::Tls("Invalid certificate /etc/hunter2.pem".into());
        assert!(
            !describe(&error).contains("hunter2"),
            "{}",
            describe(&error)
        );
    }

    /// R26: what says nothing about the event is tried again for ever; what can't be decoded is no outage.
    #[test]
    fn only_an_outage_is_one() {
        for error in [
            sqlx::Error::PoolTimedOut,
            sqlx::Error::PoolClosed,
            sqlx::Error::WorkerCrashed,
        ] {
            assert!(is_an_outage(&error), "{error}");
            assert_eq!(classify(&error), FailureClass::Transient, "{error}");
            assert!(!is_about_the_content(&error));
        }
        for error in [
            sqlx::Error::ColumnDecode {
                index: "3".to_owned(),
                source: "no timestamp".into(),
            },
            sqlx::Error::Protocol("as this test wants".to_owned()),
            sqlx::Error::RowNotFound,
        ] {
            assert!(!is_an_outage(&error), "{error}");
            assert_eq!(classify(&error), FailureClass::Refused, "{error}");
        }
    }

    /// R26: all the classes of SQLSTATEs that Postgres has, and some that a trigger makes up.
    #[test]
    fn every_class_of_sqlstates_has_one_of_failures() {
        use FailureClass::{Conflict, Permanent, Refused, Transient, Unusable};
        for (codes, class) in [
            ("23505 40001 40P01 40003", Conflict),
            ("53000 53100 53200 57014 58030 58P01 55P03 25006", Transient),
            ("42501 42P01 42703 42804 42883 428C9 3F000", Unusable),
            ("22003 22008 22P05 54000 54001", Permanent),
            (
                "22001 23502 23503 23514 23P01 44000 P0001 P0002 P0004 09000 27000",
                Refused,
            ),
            ("ORG01 ZZ999 99999 T0000 U1234", Refused),
            (
                "00000 01000 02000 03000 08000 08006 0B000 0F000 0L000 0P000 0Z000 20000 21000 24000",
                Refused,
            ),
            (
                "0A000 25000 25P02 26000 28000 2B000 2D000 2F000 34000 38000 39000 3B000 3D000 54011 55000 55006",
                Refused,
            ),
            ("72000 F0000 HV000 XX000 XX001", Refused),
        ] {
            for code in codes.split(' ') {
                assert_eq!(class_of(code), class, "{code}");
            }
        }
    }
}
