//! The WorkOS webhook signature (R29): parse, verify, sign. No I/O; the time comes in as a value.
//!
//! `WorkOS-Signature: t=<unix ms>, v1=<hex>`, where `v1` is the HMAC-SHA256 of `t + "." + body` under the
//! endpoint's secret, over the bytes as they came
//! (<https://workos.com/docs/events/data-syncing/webhooks>, "Validate the requests using the signature").

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// The header's name, in the lower case that HTTP libraries want.
pub const HEADER: &str = "workos-signature";

/// A `t` below this is in seconds: as milliseconds it would lie in 1973, as seconds in the year 5138. The
/// emulator of the official command line signs in seconds.
const FIRST_MILLISECONDS: u64 = 100_000_000_000;

/// Why a signature is refused. No message holds the expected value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is no header.
    #[error("the WorkOS-Signature header is missing")]
    Missing,
    /// The header can't be read.
    #[error("the WorkOS-Signature header is malformed: {0}")]
    Malformed(&'static str),
    /// No `v1` fits any secret: another secret, or the body was changed on the way.
    #[error("the signature matches none of the configured secrets")]
    NoMatch,
    /// Signed longer ago than the tolerance allows.
    #[error("the signature is too old: signed {skew} ago, the tolerance is {tolerance}")]
    TooOld {
        /// How long ago it was signed.
        skew: Seconds,
        /// How long ago it may have been signed.
        tolerance: Seconds,
    },
    /// Signed further in the future than the tolerance allows.
    #[error(
        "the signature is from the future: signed {skew} ahead of this clock, the tolerance is {tolerance}"
    )]
    InFuture {
        /// How far ahead it was signed.
        skew: Seconds,
        /// How far ahead it may have been signed.
        tolerance: Seconds,
    },
}

/// A duration that is shown in seconds, to the millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0.as_secs(), self.0.subsec_millis())
    }
}

#[derive(Debug)]
struct Header<'a> {
    /// As sent: this text is what was signed.
    t: &'a str,
    signed_at_ms: u64,
    v1: Vec<[u8; 32]>,
}

impl<'a> Header<'a> {
    /// Several lines are one list (RFC 9110, section 5.3). The first `t` counts.
    fn parse(lines: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, SignatureError> {
        let malformed = SignatureError::Malformed;
        let mut lines = lines.into_iter().peekable();
        lines.peek().ok_or(SignatureError::Missing)?;
        let (mut t, mut v1, mut saw_v1) = (None, Vec::new(), false);
        for line in lines {
            let line = std::str::from_utf8(line).map_err(|_| malformed("it is not ASCII"))?;
            for part in line.split(',') {
                match part.trim().split_once('=') {
                    Some(("t", value)) => drop(t.get_or_insert(value)),
                    Some(("v1", value)) => {
                        saw_v1 = true;
                        let mut signature = [0; 32];
                        if hex::decode_to_slice(value, &mut signature).is_ok() {
                            v1.push(signature);
                        }
                    }
                    // Other versions of the scheme may come beside v1.
                    _ => {}
                }
            }
        }
        let t = t.ok_or(malformed("it has no t"))?;
        if !saw_v1 {
            return Err(malformed("it has no v1"));
        }
        if v1.is_empty() {
            return Err(malformed("v1 is not 64 hexadecimal digits"));
        }
        if !t.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed("t is not a Unix time"));
        }
        let time: u64 = t.parse().map_err(|_| malformed("t is not a Unix time"))?;
        let signed_at_ms = if time < FIRST_MILLISECONDS {
            time.saturating_mul(1_000)
        } else {
            time
        };
        Ok(Self {
            t,
            signed_at_ms,
            v1,
        })
    }
}

/// Verifies the signature of a body; says which secret made it, by its place in the list, from 1.
///
/// `header` is its lines. One `v1` under one secret is enough. The time is looked at last, so that "too old" is said of
/// authentic requests only. A `tolerance` of zero switches the time check off.
///
/// # Errors
/// The header is missing, malformed, fits no secret, or is too old or too new.
pub fn verify<'a>(
    header: impl IntoIterator<Item = &'a [u8]>,
    body: &[u8],
    secrets: &[SecretString],
    tolerance: Duration,
    now: DateTime<Utc>,
) -> Result<usize, SignatureError> {
    let header = Header::parse(header)?;

    // Every pair is compared, each in constant time, whatever came before.
    let mut matching = None;
    for (position, secret) in (1..).zip(secrets) {
        let mac = mac(secret, header.t, body);
        for signature in &header.v1 {
            if mac.clone().verify_slice(signature).is_ok() {
                matching.get_or_insert(position);
            }
        }
    }
    let position = matching.ok_or(SignatureError::NoMatch)?;

    let now_ms = u64::try_from(now.timestamp_millis()).unwrap_or(0);
    let skew = Seconds(Duration::from_millis(now_ms.abs_diff(header.signed_at_ms)));
    if tolerance.is_zero() || skew.0 <= tolerance {
        return Ok(position);
    }
    let tolerance = Seconds(tolerance);
    Err(if header.signed_at_ms < now_ms {
        SignatureError::TooOld { skew, tolerance }
    } else {
        SignatureError::InFuture { skew, tolerance }
    })
}

/// Signs a body: the value of a `WorkOS-Signature` header.
#[must_use]
pub fn sign(secret: &SecretString, body: &[u8], now: DateTime<Utc>) -> String {
    let t = now.timestamp_millis().to_string();
    let v1 = hex::encode(mac(secret, &t, body).finalize().into_bytes());
    format!("t={t}, v1={v1}")
}

fn mac(secret: &SecretString, t: &str, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes())
        .expect("HMAC takes keys of any length (RFC 2104)");
    mac.update(t.as_bytes());
    mac.update(b".");
    mac.update(body);
    mac
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: &str = "32850522003ebbce01a416e5d5df8ec8354a96e921cac7d0ebbaeef5732bdaea";
    const TOLERANCE: Duration = Duration::from_secs(180);

    fn secrets(secrets: &[&str]) -> Vec<SecretString> {
        secrets
            .iter()
            .map(|secret| SecretString::from(*secret))
            .collect()
    }

    fn at_ms(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).unwrap()
    }

    fn verify_known(header: &str, keys: &[&str], now_ms: i64) -> Result<usize, SignatureError> {
        verify(
            Some(header.as_bytes()),
            b"body",
            &secrets(keys),
            TOLERANCE,
            at_ms(now_ms),
        )
    }

    /// R29: a known answer, from OpenSSL: `printf 1700000000000.body | openssl dgst -sha256 -hmac secret`.
    #[test]
    fn the_known_answer_is_signed_and_verified() {
        let header = format!("t=1700000000000, v1={KNOWN}");
        assert_eq!(
            sign(
                &SecretString::from("secret"),
                b"body",
                at_ms(1_700_000_000_000)
            ),
            header
        );
        assert_eq!(verify_known(&header, &["secret"], 1_700_000_000_000), Ok(1));
    }

    /// R29: `t` in seconds is signed and compared as seconds. OpenSSL's answer for `1700000000.body`.
    #[test]
    fn a_time_in_seconds_is_taken_too() {
        let header =
            "t=1700000000,v1=42ac6f0448c1d9c3e1e82b9726248f58fef84afffcbad5188246e96070e0ea46";
        assert_eq!(verify_known(header, &["secret"], 1_700_000_179_999), Ok(1));
        assert!(matches!(
            verify_known(header, &["secret"], 1_700_000_181_000),
            Err(SignatureError::TooOld { .. })
        ));
    }

    /// R29: several secrets for rotation, several `v1`; one match is enough, and the first secret that matches is named.
    #[test]
    fn one_match_among_secrets_and_signatures_is_enough() {
        let zeros = "0".repeat(64);
        let header = format!("v0=x,t=1700000000000,v1={zeros},v1=junk, v1={KNOWN},t=1");
        for (keys, position) in [
            (&["new", "secret"][..], 2),
            (&["secret", "new", "secret"], 1),
        ] {
            assert_eq!(verify_known(&header, keys, 1_700_000_000_000), Ok(position));
        }
        assert_eq!(
            verify_known(&header, &["new", "other"], 1_700_000_000_000),
            Err(SignatureError::NoMatch)
        );
    }

    /// R29, R30: the skew is told, to the millisecond, on both sides of the tolerance.
    #[test]
    fn the_tolerance_holds_either_way_and_zero_switches_it_off() {
        let header = format!("t=1700000000000, v1={KNOWN}");
        assert_eq!(verify_known(&header, &["secret"], 1_700_000_180_000), Ok(1));
        assert_eq!(verify_known(&header, &["secret"], 1_699_999_820_000), Ok(1));
        let old = verify_known(&header, &["secret"], 1_700_000_180_001).unwrap_err();
        assert_eq!(
            old.to_string(),
            "the signature is too old: signed 180.001 s ago, the tolerance is 180.000 s"
        );
        let new = verify_known(&header, &["secret"], 1_699_999_819_999).unwrap_err();
        assert!(
            matches!(new, SignatureError::InFuture { skew, .. } if skew.0.as_millis() == 180_001)
        );
        let keys = secrets(&["secret"]);
        let long_after = at_ms(1_900_000_000_000);
        assert_eq!(
            verify(
                Some(header.as_bytes()),
                b"body",
                &keys,
                Duration::ZERO,
                long_after
            ),
            Ok(1)
        );
    }

    /// R29: a wrong body is no match even when it is also too old: time is told of authentic requests only.
    #[test]
    fn a_tampered_body_never_matches() {
        let header = format!("t=1700000000000, v1={KNOWN}");
        let keys = secrets(&["secret"]);
        assert_eq!(
            verify(Some(header.as_bytes()), b"Body", &keys, TOLERANCE, at_ms(0)),
            Err(SignatureError::NoMatch)
        );
    }

    /// R29, R30: each way to be malformed has its words.
    #[test]
    fn malformed_headers_are_told_apart() {
        let now = 1_700_000_000_000;
        for (header, reason) in [
            (format!("v1={KNOWN}"), "it has no t"),
            ("t=1700000000000".to_owned(), "it has no v1"),
            (String::new(), "it has no t"),
            (
                format!("t=x,t=1700000000000,v1={KNOWN}"),
                "t is not a Unix time",
            ),
            (format!("t=-5,v1={KNOWN}"), "t is not a Unix time"),
            (
                format!("t=99999999999999999999999,v1={KNOWN}"),
                "t is not a Unix time",
            ),
            (format!("t=,v1={KNOWN}"), "t is not a Unix time"),
            (
                "t=1700000000000,v1=abcd".to_owned(),
                "v1 is not 64 hexadecimal digits",
            ),
        ] {
            let error = verify_known(&header, &["secret"], now).unwrap_err();
            assert_eq!(error, SignatureError::Malformed(reason), "{header}");
        }
        assert_eq!(
            verify(None, b"", &secrets(&["secret"]), TOLERANCE, at_ms(now)),
            Err(SignatureError::Missing)
        );
    }

    proptest! {
        /// R29: what is signed verifies, and nothing that differs in a bit does.
        #[test]
        fn a_signature_holds_for_its_body_alone(
            secret in "[ -~]{1,80}",
            mut body in proptest::collection::vec(any::<u8>(), 1..200),
            ms in 100_000_000_000_i64..4_000_000_000_000,
            flip in any::<prop::sample::Index>(),
        ) {
            let keys = secrets(&[&secret]);
            let header = sign(&keys[0], &body, at_ms(ms));
            let verdict = |body: &[u8]| verify(Some(header.as_bytes()), body, &keys, TOLERANCE, at_ms(ms));
            prop_assert_eq!(verdict(&body), Ok(1));
            let at = flip.index(body.len());
            body[at] ^= 1;
            prop_assert_eq!(verdict(&body), Err(SignatureError::NoMatch));
        }
    }
}
