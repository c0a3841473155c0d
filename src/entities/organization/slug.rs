//! Slugs: the base slug of a name (R8) and the candidates that are tried in its place when it is taken (R9).
//! No I/O: the shell asks the database for the first candidate that is free.

use deunicode::deunicode_char;
use sha2::{Digest, Sha256};

use crate::event::{OrganizationId, WorkosId};

/// The longest slug, in characters (all of them ASCII), unless the column holds less: a DNS label.
pub const MAX_LENGTH: usize = 63;

/// A slug shorter than this says nothing; the organization's id stands in for the name.
const MIN_LENGTH: usize = 2;

/// The slug that a name asks for: lower-case ASCII letters, digits and single hyphens, transliterated from
/// other scripts, at most `max_length` long. A name that leaves fewer than 2 characters falls back to the
/// WorkOS organization id; there is always a slug (R8).
#[must_use]
pub fn base(name: &str, workos_id: &WorkosId, max_length: usize) -> String {
    [name, workos_id.as_str()]
        .into_iter()
        .map(|text| slugify(text, max_length))
        .find(|slug| slug.len() >= MIN_LENGTH)
        .unwrap_or_else(|| slugify("organization", max_length))
}

/// Every slug that the organization may take, at most `max_length` long, in the order in which they are tried;
/// endless. The base comes first, then the base with a suffix that is a function of the organization id, so that a
/// replay chooses the same, longer each time, so that siblings of the same name part after a try or two (R9).
pub fn candidates(
    base: &str,
    organization_id: &OrganizationId,
    max_length: usize,
) -> impl Iterator<Item = String> {
    // Beside the suffix, a character of the base and a hyphen; where there is no room for them, the suffix alone.
    let longest = match max_length {
        0..=3 => max_length,
        _ => max_length - 2,
    };
    let mut lengths = [6, 10, 16, 26]
        .map(|length| std::cmp::min(length, longest))
        .to_vec();
    lengths.dedup();
    let organization_id = organization_id.clone();
    let suffixes = (0_u64..).flat_map(move |round| {
        let digest = base32(&Sha256::digest(format!("{round}:{organization_id}")));
        let suffixes = lengths
            .iter()
            .map(move |length| digest[..*length].to_owned());
        suffixes.collect::<Vec<_>>()
    });
    let base = base.to_owned();
    std::iter::once(base.clone()).chain(suffixes.map(move |suffix| {
        let room = max_length.saturating_sub(1 + suffix.len());
        let stem = base[..std::cmp::min(base.len(), room)].trim_end_matches('-');
        match stem {
            "" => suffix,
            _ => format!("{stem}-{suffix}"),
        }
    }))
}

fn slugify(name: &str, max_length: usize) -> String {
    let mut slug = String::new();
    // A name can be a megabyte long: transliterate only what fits.
    for c in name.chars() {
        // Deunicode drops tabs and line breaks, and what they part would be one word.
        let latin = match deunicode_char(c) {
            Some(latin) if !c.is_control() => latin,
            _ => " ",
        };
        for c in latin.chars() {
            if c.is_ascii_alphanumeric() {
                slug.push(c.to_ascii_lowercase());
            } else if !slug.is_empty() && !slug.ends_with('-') {
                slug.push('-');
            }
        }
        if slug.len() > max_length {
            break;
        }
    }
    slug.truncate(max_length);
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
            ("Acme\tInc", "acme-inc"),
            ("Acme\r\nInc", "acme-inc"),
            ("\u{7}Acme \u{1b} Inc\u{7f}", "acme-inc"),
            (
                "Acme\u{85}Inc\u{a0}Co\u{2003}\u{2028}Ltd\u{3000}KK\u{200b}AG",
                "acme-inc-co-ltd-kk-ag",
            ),
            // Neither is a character of its own: a combining mark, and a hyphen that only shows at the end of a line.
            ("Zoe\u{308} Shy\u{ad}phen", "zoe-shyphen"),
        ] {
            assert_eq!(base(name, &workos_id(), MAX_LENGTH), slug, "{name:?}");
        }
    }

    /// R8: a name that leaves fewer than 2 characters never fails the event.
    #[test]
    fn a_name_without_letters_falls_back_to_the_workos_id() {
        for name in ["!!!", "", "a", "\u{0}", "\u{10ffff}"] {
            assert_eq!(
                base(name, &workos_id(), MAX_LENGTH),
                "org-01ehwnce74x7jsdv0x3sz3kjny",
                "{name:?}"
            );
        }
        let nameless = WorkosId::new("?").unwrap();
        assert_eq!(base("!", &nameless, MAX_LENGTH), "organization");
    }

    /// R8, R9: slugs are no longer than the column, however short that is, and there are enough of them.
    #[test]
    fn slugs_fit_into_the_column() {
        for max_length in 2..=MAX_LENGTH + 1 {
            for name in [
                "An organization of a name that is longer than the column",
                "X-Y",
                "!",
            ] {
                let base = base(name, &workos_id(), max_length);
                let slugs: HashSet<_> = candidates(&base, &organization_id("a"), max_length)
                    .take(40)
                    .collect();
                let fits = |slug: &String| (2..=max_length).contains(&slug.len());
                assert!(slugs.iter().all(fits), "{max_length}: {slugs:?}");
                let clean = |slug: &String| {
                    !slug.starts_with('-') && !slug.ends_with('-') && !slug.contains("--")
                };
                assert!(slugs.iter().all(clean), "{max_length}: {slugs:?}");
                assert!(slugs.len() > 35, "{max_length}: {slugs:?}");
            }
        }
        let lengths = |max_length| {
            candidates("northwind", &organization_id("a"), max_length)
                .take(4)
                .map(|slug| slug.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(lengths(10), [9, 10, 10, 10]);
        assert_eq!(lengths(20), [9, 16, 20, 20]);
    }

    /// R9: a suffix is a function of the organization id, and grows.
    #[test]
    fn the_suffix_depends_on_the_organization_id_alone() {
        let slugs = |id| {
            candidates("acme", &organization_id(id), MAX_LENGTH)
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
            let tried = candidates("acme", &id, MAX_LENGTH)
                .position(|slug| taken.insert(slug))
                .unwrap();
            assert!(tried <= 2, "{n} tried {tried}");
        }
    }
}
