//! Slugs: the base slug of a name (R8) and the candidates that are tried in its place when it is taken (R9).
//! No I/O: the shell asks the database for the first candidate that is free.

use deunicode::deunicode_char;
use sha2::{Digest, Sha256};

use crate::event::{OrganizationId, WorkosId};

/// The longest slug, in characters (all of them ASCII): a DNS label.
pub const MAX_LENGTH: usize = 63;

/// A slug shorter than this says nothing; the organization's id stands in for the name.
const MIN_LENGTH: usize = 2;

/// The slug that a name asks for: lower-case ASCII letters, digits and single hyphens, transliterated from
/// other scripts, at most [`MAX_LENGTH`] long. A name that leaves fewer than 2 characters falls back to the
/// WorkOS organization id; there is always a slug (R8).
#[must_use]
pub fn base(name: &str, workos_id: &WorkosId) -> String {
    [name, workos_id.as_str()]
        .into_iter()
        .map(slugify)
        .find(|slug| slug.len() >= MIN_LENGTH)
        .unwrap_or_else(|| "organization".to_owned())
}

/// Every slug that the organization may take, in the order in which they are tried; endless. The base comes
/// first, then the base with a suffix that is a function of the organization id, so that a replay chooses the
/// same, longer each time, so that siblings of the same name part after a try or two (R9).
pub fn candidates(base: &str, organization_id: &OrganizationId) -> impl Iterator<Item = String> {
    let suffixes = (0_u64..).flat_map({
        let organization_id = organization_id.clone();
        move |round| {
            let digest = base32(&Sha256::digest(format!("{round}:{organization_id}")));
            [6, 10, 16, 26].map(|length| digest[..length].to_owned())
        }
    });
    let stem = base.to_owned();
    std::iter::once(base.to_owned()).chain(suffixes.map(move |suffix| {
        let room = std::cmp::min(stem.len(), MAX_LENGTH - 1 - suffix.len());
        format!("{}-{suffix}", stem[..room].trim_end_matches('-'))
    }))
}

fn slugify(name: &str) -> String {
    let mut slug = String::new();
    // A name can be a megabyte long: transliterate only what fits.
    for c in name.chars() {
        for c in deunicode_char(c).unwrap_or(" ").chars() {
            if c.is_ascii_alphanumeric() {
                slug.push(c.to_ascii_lowercase());
            } else if !slug.is_empty() && !slug.ends_with('-') {
                slug.push('-');
            }
        }
        if slug.len() > MAX_LENGTH {
            break;
        }
    }
    slug.truncate(MAX_LENGTH);
    slug.truncate(slug.trim_end_matches('-').len());
    slug
}

/// RFC 4648 base 32 in lower case, as far as whole groups of five bits go.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut text = String::new();
    let (mut buffer, mut bits) = (0_u16, 0);
    for byte in bytes {
        buffer = (buffer << 8) | u16::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(ALPHABET[usize::from((buffer >> bits) & 31)]));
        }
        buffer &= (1 << bits) - 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn workos_id() -> WorkosId {
        WorkosId::new("org_01EHWNCE74X7JSDV0X3SZ3KJNY").unwrap()
    }

    fn organization_id(text: &str) -> OrganizationId {
        OrganizationId::new(text).unwrap()
    }

    /// R8
    #[test]
    fn names_become_slugs() {
        for (name, slug) in [
            ("Acme, Inc.", "acme-inc"),
            ("Bob's Bakery", "bob-s-bakery"),
            ("Café Zoë", "cafe-zoe"),
            ("  --Acme__Corp--  ", "acme-corp"),
            ("Москва", "moskva"),
            ("北京", "bei-jing"),
            ("Ærø & Søn", "aero-son"),
            ("42", "42"),
        ] {
            assert_eq!(base(name, &workos_id()), slug, "{name}");
        }
    }

    /// R8: a name that leaves fewer than 2 characters never fails the event.
    #[test]
    fn a_name_without_letters_falls_back_to_the_workos_id() {
        for name in ["!!!", "", "a", "\u{0}", "\u{10ffff}"] {
            assert_eq!(
                base(name, &workos_id()),
                "org-01ehwnce74x7jsdv0x3sz3kjny",
                "{name:?}"
            );
        }
        assert_eq!(base("!", &WorkosId::new("?").unwrap()), "organization");
    }

    /// R9: a suffix is a function of the organization id, and grows.
    #[test]
    fn the_suffix_depends_on_the_organization_id_alone() {
        let slugs = |id| {
            candidates("acme", &organization_id(id))
                .take(6)
                .collect::<Vec<_>>()
        };
        assert_eq!(slugs("a"), slugs("a"));
        assert_ne!(slugs("a")[1..], slugs("b")[1..]);
        let lengths: Vec<_> = slugs("a").iter().map(String::len).collect();
        assert_eq!(lengths, [4, 11, 15, 21, 31, 11]);
    }

    /// R9: ten thousand of the same name part at the first suffix, or at the second.
    #[test]
    fn ten_thousand_of_the_same_name_find_a_slug_within_two_suffixes() {
        let mut taken = HashSet::from(["acme".to_owned()]);
        for n in 0..10_000 {
            let id = organization_id(&format!("id-{n}"));
            let tried = candidates("acme", &id)
                .position(|slug| taken.insert(slug))
                .unwrap();
            assert!(tried <= 2, "{n} tried {tried}");
        }
    }
}
