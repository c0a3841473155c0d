//! What a database error means for the event that met it: the only place that knows SQLSTATEs (R26).
//!
//! Classes go by SQLSTATE, never by message text: messages are translated
//! (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).

use std::borrow::Cow;

/// What to do about an event that could not be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// Another writer was in the way: try again at once, from the fetch on, a few times.
    Conflict,
    /// The database is away, overloaded or not yet as it should be: try again later, for ever.
    Transient,
    /// A rule that the host application added refuses the row: try a few times, then it is a dead letter.
    Refused,
    /// What the event contains can't be stored: a dead letter.
    Permanent,
}

/// Classes a database error.
#[must_use]
pub fn classify(error: &sqlx::Error) -> FailureClass {
    let sqlx::Error::Database(error) = error else {
        // Connection lost, pool exhausted or closed, TLS, protocol: nothing about the event.
        return FailureClass::Transient;
    };
    let code = error.code().unwrap_or(Cow::Borrowed(""));
    match &*code {
        // unique_violation, serialization_failure, deadlock_detected
        "23505" | "40001" | "40P01" => FailureClass::Conflict,
        // program_limit_exceeded, statement_too_complex: what the event contains is too large for an index.
        "54000" | "54001" => FailureClass::Permanent,
        _ => match code.get(..2) {
            // Integrity constraint violation: CHECK, NOT NULL, foreign key, exclusion; 44: a view's CHECK; P0:
            // a PL/pgSQL trigger of the host application (RAISE, ASSERT, SELECT INTO STRICT).
            Some("23" | "44" | "P0") => FailureClass::Refused,
            // Data exception: a value that no retry makes storable.
            Some("22") => FailureClass::Permanent,
            // Everything else is about the database, not about the event: connections (08), resources (53),
            // operator intervention (57), timeouts (55P03, 57014), and what an operator can mend (missing
            // privileges or tables, 42).
            _ => FailureClass::Transient,
        },
    }
}

/// Says whether the error is about the database as a whole, so that any other statement would meet it too:
/// connections, too many of them, a server that starts or stops, one that only reads.
#[must_use]
pub fn is_an_outage(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else {
        return true;
    };
    error.code().is_some_and(|code| {
        code.starts_with("08") || code.starts_with("57P") || code == "53300" || code == "25006"
    })
}

/// Says whether a lock was waited for in vain (`lock_not_available`).
#[must_use]
pub fn is_lock_timeout(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().is_some_and(|code| code == "55P03"))
}

/// Says whether a unique index refused the row.
#[must_use]
pub fn is_unique_violation(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.is_unique_violation())
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

/// The error as an operator wants to read it in `last_error`: SQLSTATE, message, and the constraint's name.
#[must_use]
pub fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => {
            let mut text = error.message().to_owned();
            if let Some(code) = error.code() {
                text = format!("{text} (SQLSTATE {code}");
                if let Some(constraint) = error.constraint() {
                    text = format!("{text}, constraint {constraint}");
                }
                text.push(')');
            }
            text
        }
        other => match tls_error(other) {
            Some(error) => describe_tls(error),
            None => other.to_string(),
        },
    }
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

    /// R26: what says nothing about the event is tried again for ever.
    #[test]
    fn errors_of_the_connection_are_transient() {
        for error in [
            sqlx::Error::PoolTimedOut,
            sqlx::Error::PoolClosed,
            sqlx::Error::WorkerCrashed,
        ] {
            assert_eq!(classify(&error), FailureClass::Transient, "{error}");
            assert!(!is_about_the_content(&error));
        }
    }
}
