//! What the modules may know of each other. An architecture that nothing checks is a wish.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The functional core has no I/O: no database, no runtime, no HTTP, no clock, no chance.
#[test]
fn pure_modules_know_no_io() {
    for file in [
        "admin/page/json.rs",
        "admin/page/parts.rs",
        "doctor/verdict.rs",
        "entities/guard.rs",
        "entities/organization/decide.rs",
        "entities/organization/event.rs",
        "entities/organization/host/check.rs",
        "entities/organization/notify.rs",
        "entities/organization/organization_id.rs",
        "entities/organization/precision.rs",
        "entities/organization/slug.rs",
        "entities/outcome.rs",
        "event/field.rs",
        "event/id.rs",
        "event/mod.rs",
        "signature.rs",
        "backoff.rs",
        "heal/snapshot.rs",
        "heal/window.rs",
        "inbox/crew.rs",
        "inbox/queue.rs",
        "inbox/retry.rs",
        "inbox/request_ids.rs",
        "keyed_mutex.rs",
        "operate/filter.rs",
        "outbox/pace.rs",
        "outbox/verdict.rs",
        "repeats.rs",
    ] {
        assert_knows_none_of(
            file,
            &[
                "sqlx",
                "tokio",
                "reqwest",
                "axum",
                "fastrand",
                "std::fs",
                "std::net",
                "crate::clock",
            ],
        );
    }
}

/// The parts of the inbox, each above those that it may know. None knows the façade.
const INBOX: [&str; 19] = [
    "bulk",
    "page",
    "record",
    "sweeper",
    "watch",
    "lanes",
    "attempts",
    "transaction",
    "outcomes",
    "counts",
    "failure",
    "store",
    "status",
    "conditions",
    "crew",
    "pulse",
    "queue",
    "request_ids",
    "retry",
];

/// In `src/lib.rs` the modules stand in the order of the layers. Its text tells of each, in the same order.
#[test]
fn the_map_is_complete_and_in_order() {
    let library = std::fs::read_to_string(source("lib.rs")).unwrap();
    let declared = declared(&library);
    let there: BTreeSet<String> = modules(&source("")).into_keys().collect();
    let in_order: BTreeSet<String> = declared.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(in_order, there);

    let (_, map) = library.split_once("//! # How it is built").unwrap();
    let told: Vec<_> = map
        .lines()
        .take_while(|line| line.starts_with("//!") || line.is_empty())
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|name| declared.contains(name))
        .collect();
    assert_eq!(told, declared);
}

/// Each module knows only those that come after it, and those that know no other: those can't be part of a circle.
#[test]
fn arrows_go_one_way() {
    let modules = modules(&source(""));
    let knows = |name: &str| known_siblings(&source(""), &modules[name], &modules);
    let library = std::fs::read_to_string(source("lib.rs")).unwrap();
    let declared = declared(&library);
    for (place, name) in declared.iter().enumerate() {
        for known in knows(name) {
            assert!(
                !declared[..place].contains(&known.as_str()) || knows(&known).is_empty(),
                "{name} knows {known}, which comes before it"
            );
        }
    }

    assert_arrows_go_down("inbox", "super::", &INBOX);
    // A part that wants something of the façade would name it with a capital letter, or among braces.
    for part in INBOX {
        assert_knows_none_of(&format!("inbox/{part}.rs"), &["super::{", "crate::inbox"]);
    }
}

/// The inbox hands events to the entities, and knows none of them.
#[test]
fn the_inbox_knows_no_entity_by_name() {
    for file in files(&source("inbox")) {
        let file = file.strip_prefix(source("")).unwrap().to_str().unwrap();
        assert_knows_none_of(file, &["entities::organization", "OrganizationEvent"]);
    }
}

/// In no directory do modules know each other in a circle.
#[test]
fn no_modules_go_in_circles() {
    let mut directories = vec![source("")];
    while let Some(directory) = directories.pop() {
        let modules = modules(&directory);
        directories.extend(modules.values().filter(|path| path.is_dir()).cloned());
        let mut unplaced: BTreeMap<_, _> = modules
            .iter()
            .map(|(name, path)| (name, known_siblings(&directory, path, &modules)))
            .collect();
        // Whoever knows only what has its place already has one too.
        loop {
            let placed: Vec<_> = unplaced
                .iter()
                .filter(|(_, known)| !known.iter().any(|known| unplaced.contains_key(known)))
                .map(|(name, _)| *name)
                .collect();
            if placed.is_empty() {
                break;
            }
            unplaced.retain(|name, _| !placed.contains(name));
        }
        assert!(unplaced.is_empty(), "{directory:?}: {unplaced:#?}");
    }
}

/// The modules of a directory, with their files or directories.
fn modules(directory: &Path) -> BTreeMap<String, PathBuf> {
    directory
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() || path.extension().is_some_and(|end| end == "rs"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path))
        .filter(|(name, _)| !matches!(&**name, "mod" | "lib" | "main" | "tests"))
        .collect()
}

/// The modules that a file declares, in its order.
fn declared(code: &str) -> Vec<&str> {
    code.lines()
        .map(|line| line.strip_prefix("pub ").unwrap_or(line))
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'))
        .collect()
}

/// The modules of a directory that one of them knows, by their paths in the code.
fn known_siblings(
    directory: &Path,
    module: &Path,
    modules: &BTreeMap<String, PathBuf>,
) -> Vec<String> {
    let inside = directory.strip_prefix(source("")).unwrap();
    let path = inside.iter().map(|part| part.to_str().unwrap());
    let path: Vec<_> = std::iter::once("crate").chain(path).collect();
    let absolute = format!("{}::", path.join("::"));
    let mut known = Vec::new();
    for file in files(module) {
        let code = code_of(&file);
        // From the module itself, one step up leads to the directory; from a part of it, more.
        let inner = file.strip_prefix(directory).unwrap();
        let is_itself = inner.ends_with("mod.rs") && module.is_dir();
        let steps = inner.iter().count() - usize::from(is_itself);
        let relative = "super::".repeat(steps);
        for name in modules.keys().filter(|name| modules[*name] != module) {
            if names_module(&code, &absolute, name) || names_module(&code, &relative, name) {
                known.push(name.clone());
            }
        }
    }
    known
}

/// Whether `path::name` is in the code, or `path::{…, name…}`.
fn names_module(code: &str, path: &str, name: &str) -> bool {
    code.match_indices(path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c == ':' || c == '_' || c.is_alphanumeric()) {
            return false;
        }
        let rest = &code[at + path.len()..];
        let named = match rest.strip_prefix('{') {
            Some(list) => list.split(';').next().unwrap(),
            None => rest
                .split(|c: char| c != '_' && !c.is_alphanumeric())
                .next()
                .unwrap(),
        };
        named
            .split(|c: char| c != '_' && !c.is_alphanumeric())
            .any(|word| word == name)
    })
}

/// A file without its comments and its tests.
fn code_of(file: &Path) -> String {
    let code = std::fs::read_to_string(file).unwrap();
    let code = code.split("#[cfg(test)]").next().unwrap();
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// In a directory of modules that are listed from top to bottom, each knows only those below it.
fn assert_arrows_go_down(directory: &str, path: &str, layers: &[&str]) {
    for entry in source(directory).read_dir().unwrap() {
        let module = entry.unwrap().path();
        let name = module.file_stem().unwrap().to_str().unwrap();
        if matches!(name, "mod" | "lib" | "main") {
            continue;
        }
        let place = layers.iter().position(|layer| *layer == name);
        let place = place.unwrap_or_else(|| panic!("{name} has no place among the layers"));
        let above: Vec<_> = layers[..place]
            .iter()
            .map(|above| format!("{path}{above}"))
            .collect();
        let above: Vec<_> = above.iter().map(String::as_str).collect();
        for file in files(&module) {
            assert_knows_none_of(
                file.strip_prefix(source("")).unwrap().to_str().unwrap(),
                &above,
            );
        }
    }
}

/// The file, or all files of the directory.
fn files(module: &Path) -> Vec<PathBuf> {
    if module.is_file() {
        return vec![module.to_owned()];
    }
    let entries = module.read_dir().unwrap();
    entries
        .flat_map(|entry| files(&entry.unwrap().path()))
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The private Postgres is a package that knows nothing of us, and the only one who starts a server. (The end-to-end tests
/// put stand-ins in the place of its programs.)
#[test]
fn only_one_package_starts_postgres() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &Path| std::fs::read_to_string(file).unwrap();
    for file in files(&root.join("private-postgres")) {
        let code = read(&file).to_lowercase();
        assert!(!code.contains("workos"), "{} knows us", file.display());
    }
    let scripts = root.join("scripts").read_dir().unwrap();
    let scripts = scripts.map(|script| script.unwrap().path());
    let code = ["src", "bench/src", "tests/faults", "tests/it/support"];
    for file in code
        .iter()
        .flat_map(|directory| files(&root.join(directory)))
        .chain(scripts)
    {
        for program in ["pg_ctl", "\"initdb\"", "bin/initdb"] {
            assert!(
                !read(&file).contains(program),
                "{} starts a server",
                file.display()
            );
        }
    }
}

/// What belongs to a process is installed by the program, and nowhere behind the back of an application that has the
/// service inside.
#[test]
fn nothing_is_installed_behind_the_hosts_back() {
    let program = ["cli", "main.rs", "dotenv.rs", "telemetry", "shutdown.rs"];
    for entry in source("").read_dir().unwrap() {
        let module = entry.unwrap().path();
        let name = module.file_name().unwrap().to_str().unwrap();
        if program.contains(&name) {
            continue;
        }
        for file in files(&module) {
            assert_knows_none_of(
                file.strip_prefix(source("")).unwrap().to_str().unwrap(),
                &[
                    "install_default",
                    "set_hook",
                    "set_global_default",
                    "set_var",
                    "on_signals",
                    "crate::telemetry",
                    "crate::dotenv",
                ],
            );
        }
    }
}

fn source(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path)
}

fn assert_knows_none_of(file: &str, names: &[&str]) {
    let code = std::fs::read_to_string(source(file)).unwrap();
    // Up to the tests, which may use anything.
    let code = code.split("#[cfg(test)]").next().unwrap();
    for line in code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
    {
        for name in names {
            let knows = line.match_indices(name).any(|(at, _)| {
                // Not another module whose name begins like that.
                !line[at + name.len()..]
                    .starts_with(|next: char| next == '_' || next.is_alphanumeric())
            });
            assert!(!knows, "{file} knows {name}: {line}");
        }
    }
}
