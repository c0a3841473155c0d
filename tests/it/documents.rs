//! The documents: what they link to is there, and so is what they tell the reader to run. Pages that no test reads are
//! wrong within months.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use workos_sync::entities::organization::OrganizationEvent;
use workos_sync::entities::{self, Outcome};
use workos_sync::event::Event;
use workos_sync::inbox::Status;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page that is for readers, by its path.
fn pages() -> BTreeMap<PathBuf, String> {
    let mut pages = BTreeMap::new();
    for directory in ["", "docs", "migrations", "ops"] {
        // Not every directory has to be there.
        let entries = root().join(directory).read_dir().into_iter().flatten();
        for entry in entries {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = std::fs::read_to_string(&path).unwrap();
                pages.insert(path, text);
            }
        }
    }
    assert!(pages.len() > 8, "{:?}", pages.keys());
    pages
}

/// The lines of a page with whether they are code.
fn lines(page: &str) -> impl Iterator<Item = (bool, &str)> {
    let mut in_block = false;
    page.lines().map(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        (in_block || is_fence, line)
    })
}

/// What its headings can be linked as.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = lines(page).filter(|(is_code, line)| !is_code && line.starts_with('#'));
    headings
        .map(|(_, line)| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let pages = pages();
    let mut broken = Vec::new();
    for (page, text) in &pages {
        for (_, line) in lines(text).filter(|(is_code, _)| !is_code) {
            for rest in line.split("](").skip(1) {
                let target = rest.split(')').next().unwrap();
                if target.starts_with("https://") || target.contains(' ') {
                    continue;
                }
                let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
                let path = if file.is_empty() {
                    page.clone()
                } else {
                    let joined = page.parent().unwrap().join(file);
                    joined.canonicalize().unwrap_or(joined)
                };
                let is_there = path.exists()
                    && (anchor.is_empty()
                        || pages
                            .get(&path)
                            .is_some_and(|text| anchors(text).contains(anchor)));
                if !is_there {
                    broken.push(format!("{}: {target}", page.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The tests, as `cargo test` names them, of the library or of a directory of tests.
fn tests(directory: &str) -> Vec<String> {
    let directory = root().join(directory);
    let mut tests = Vec::new();
    let mut unread = vec![directory.clone()];
    while let Some(path) = unread.pop() {
        if path.is_dir() {
            unread.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let module = path.strip_prefix(&directory).unwrap().with_extension("");
            let module = module
                .to_str()
                .unwrap()
                .replace('/', "::")
                .replace("::mod", "");
            let text = std::fs::read_to_string(&path).unwrap();
            for line in text.lines().map(str::trim_start) {
                let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
                let line = line.strip_prefix("async ").unwrap_or(line);
                if let Some(function) = line.strip_prefix("fn ") {
                    let name = function.split(['(', '<']).next().unwrap();
                    tests.push(format!("{module}::{name}"));
                }
            }
        }
    }
    tests
}

/// A `cargo test …` that finds no test passes: whoever runs it believes in what wasn't tried.
#[test]
fn commands_run_something() {
    let targets = BTreeMap::from([
        (
            "lib",
            [tests("src"), tests("private-postgres/src")].concat(),
        ),
        ("it", tests("tests/it")),
        ("e2e", tests("tests/e2e")),
        ("faults", tests("tests/faults")),
    ]);
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let mut seen = 0;
    for (page, text) in pages() {
        for (is_code, line) in lines(&text) {
            let code: Vec<&str> = if is_code {
                vec![line]
            } else {
                line.split('`').skip(1).step_by(2).collect()
            };
            for command in code {
                let at = format!("{}: {command}", page.display());
                let command = command.split(" #").next().unwrap();
                let mut words = command
                    .split_whitespace()
                    .skip_while(|word| !matches!(*word, "cargo" | "make"));
                match (words.next(), words.next()) {
                    (Some("make"), Some(target)) => {
                        assert!(makefile.contains(&format!("\n{target}: ")), "{at}");
                        seen += 1;
                    }
                    (Some("cargo"), Some("test")) => {
                        let (mut target, mut filter) = (None, "");
                        while let Some(word) = words.next() {
                            match word {
                                "--lib" => target = Some("lib"),
                                "--test" => target = words.next(),
                                option if option.starts_with("--") => {}
                                word => filter = word,
                            }
                        }
                        let mut found = targets
                            .iter()
                            .filter(|(name, _)| target.is_none_or(|target| target == **name))
                            .flat_map(|(_, tests)| tests);
                        assert!(found.any(|test| test.contains(filter)), "{at}");
                        seen += 1;
                    }
                    _ => {}
                }
            }
        }
    }
    assert!(seen > 30, "{seen} commands were found");
}

/// The README promises nothing, and compares itself with nothing, but beside a link or a command that shows it.
#[test]
fn the_claims_of_the_readme_can_be_checked() {
    let readme = page("README.md");
    let mut seen = 0;
    for heading in ["\n## Promises\n", "\n## Why not …\n"] {
        let section = readme.split(heading).nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| "));
        // Behind the head and the line under it.
        for row in rows.skip(2) {
            let last = *cells(row).last().unwrap();
            let is_shown = ["](", "`cargo test ", "`make "]
                .iter()
                .any(|sign| last.contains(sign));
            // What it doesn't do needs no proof.
            assert!(is_shown || last.starts_with("**no**"), "{row}");
            seen += 1;
        }
    }
    assert!(seen > 15, "{seen} claims");
}

/// A file that the reader is given is one that works: its event is as WorkOS would send it.
#[test]
fn the_sample_event_is_one() {
    let body = std::fs::read(root().join("examples/event.json")).unwrap();
    let event = Event::parse(&body).unwrap();
    let organization = OrganizationEvent::decode(&event).unwrap();
    assert!(organization.workos_id.as_str().starts_with("org_"));
    for id in [event.id.as_str(), organization.workos_id.as_str()] {
        let (_, ulid) = id.split_once('_').unwrap();
        assert!(ulid::Ulid::from_string(ulid).is_ok(), "{id}");
    }
}

/// The words in backticks of a table's column, in the page's part behind a heading.
fn words_of(page: &str, heading: &str, column: usize) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("docs").join(page)).unwrap();
    let (_, part) = text.split_once(heading).unwrap();
    let part = part.split("\n## ").next().unwrap();
    let cells = part
        .lines()
        .filter_map(|line| line.strip_prefix('|')?.split('|').nth(column));
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

fn set<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    words.into_iter().map(str::to_owned).collect()
}

/// R27: what the documents say of types, outcomes and statuses is what there is.
#[test]
fn tables_of_types_outcomes_and_statuses_are_whole() {
    let events = "## What each kind of event comes to";
    let mut types = words_of("design.md", events, 0);
    types.retain(|word| word.contains('.'));
    assert_eq!(types, set(entities::types()));
    let mut outcomes = set(Outcome::ALL.map(Outcome::as_str));
    // That is a status.
    outcomes.insert(Status::Ignored.as_str().to_owned());
    assert_eq!(words_of("design.md", events, 4), outcomes);

    let tables = "## The tables";
    let statuses = set(Status::ALL.map(Status::as_str));
    assert_eq!(words_of("operating.md", tables, 0), statuses);
    outcomes.remove(Status::Ignored.as_str());
    let told = words_of("operating.md", tables, 1);
    assert!(outcomes.is_subset(&told), "{told:?}");
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// The cells of a row of a table.
fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split(" | ").map(str::trim).collect()
}

/// The number that a cell begins with.
fn number(cell: &str) -> f64 {
    let digits = cell.split(' ').next().unwrap().replace(',', "");
    digits.parse().unwrap_or_else(|_| panic!("{cell}"))
}

/// The figures that the README shows are those of the last run, rounded.
#[test]
fn figures_are_measured() {
    let (readme, benchmarks) = (page("README.md"), page("docs/benchmarks.md"));
    let section = readme.split("\n## How fast\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<_> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    assert!(rows.len() > 3, "{section}");
    for row in rows {
        let told = cells(row);
        let measured = benchmarks
            .lines()
            .map(cells)
            .find(|cells| cells[0] == told[0]);
        let measured = measured.unwrap_or_else(|| panic!("not measured: {row}"));
        let (told, measured) = (number(told[1]), number(measured[1]));
        assert!(
            (told / measured - 1.0).abs() < 0.2,
            "{row}: {measured} was measured"
        );
    }
}

/// What an event is said to cost is what it did cost in the last run, more or less: it is told in tens.
#[test]
fn costs_are_measured() {
    let (scale, benchmarks) = (page("docs/scale.md"), page("docs/benchmarks.md"));
    let head = benchmarks
        .lines()
        .find(|line| line.starts_with("| workload |"));
    let head = cells(head.unwrap());
    let column = head
        .iter()
        .position(|cell| cell.starts_with("CPU, service"));
    let mut compared = 0;
    for row in scale.lines().filter(|line| line.ends_with(" µs |")) {
        let [what, service, postgres] = cells(row)[..] else {
            panic!("{row}");
        };
        let workload = what.split(':').next().unwrap();
        let measured = benchmarks
            .lines()
            .map(cells)
            .find(|cells| cells[0] == workload && cells.len() == head.len());
        let measured = measured.unwrap_or_else(|| panic!("not measured: {row}"));
        let events = number(measured[1]);
        let seconds = measured[column.unwrap()].split(" / ").map(number);
        for (told, seconds) in [service, postgres].into_iter().zip(seconds) {
            let cost = seconds / events * 1_000_000.0;
            let difference = (number(told) - cost).abs();
            assert!(difference <= 15.0, "{row}: {cost} µs were measured");
        }
        compared += 1;
    }
    assert_eq!(compared, 4);
}
