//! The properties of the fuzz targets, without a fuzzer: over their corpus, over mutations of it, and over bytes
//! of no sense at all.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

#[path = "../../fuzz/properties.rs"]
mod shared;

/// The seeds of a target, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut seeds: Vec<_> = folder
        .read_dir()
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    seeds.sort_unstable();
    assert!(!seeds.is_empty(), "{target}");
    seeds
}

fn check(target: &str, property: fn(&[u8])) {
    let seeds = corpus(target);
    for (name, seed) in &seeds {
        let held = catch_unwind(AssertUnwindSafe(|| property(seed)));
        assert!(held.is_ok(), "{target}/{name}");
    }
    let seeds: Vec<_> = seeds.into_iter().map(|(_, seed)| seed).collect();
    let bytes = || proptest::collection::vec(any::<u8>(), 0..200);
    // A piece of a seed is replaced by a piece of another, or by bytes of any kind.
    let mutated = (
        select(seeds.clone()),
        prop_oneof![
            select(seeds),
            bytes(),
            "\\PC{0,8}".prop_map(String::into_bytes)
        ],
        any::<[Index; 4]>(),
    )
        .prop_map(|(mut seed, other, cuts)| {
            let piece = |length: usize, cuts: &[Index]| {
                let (a, b) = (cuts[0].index(length + 1), cuts[1].index(length + 1));
                std::cmp::min(a, b)..std::cmp::max(a, b)
            };
            let from = piece(other.len(), &cuts[..2]);
            seed.splice(piece(seed.len(), &cuts[2..]), other[from].iter().copied());
            seed
        });
    let config = Config {
        cases: 1_000,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&prop_oneof![3 => mutated, 1 => bytes()], |input| {
            property(&input);
            Ok(())
        })
        .unwrap();
}

/// R29, R30: good signatures are those that a second implementation computes, and no others.
#[test]
fn any_signature() {
    check("signature", shared::signature);
}

/// R26, R30: events are what `serde_json` finds to be one, and nothing else.
#[test]
fn any_envelope() {
    check("envelope", shared::envelope);
}

/// R8, R9: every name has slugs.
#[test]
fn any_slug() {
    check("slugify", shared::slugify);
}
