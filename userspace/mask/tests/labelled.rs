//! How often the detectors are right, on lines that say what is in them.
//!
//! `cargo test -p mantled-mask --test labelled -- --nocapture` prints the table that docs/policy.md shows.

use std::{collections::BTreeSet, ops::Range};

use mantled_mask::{Kind, find};

const LINES: &str = include_str!("labelled.tsv");

/// What is asked of each: of what it finds, and of what is there, in hundredths.
const ASKED: [(Kind, u32, u32); 8] = [
    (Kind::Email, 98, 98),
    (Kind::Card, 90, 99),
    (Kind::Iban, 99, 99),
    (Kind::NationalId, 90, 98),
    (Kind::Jwt, 99, 99),
    (Kind::CloudKey, 99, 99),
    (Kind::PrivateKey, 99, 99),
    (Kind::Secret, 90, 90),
];

type Span = (usize, usize);

/// A text, and what is in it.
type Line = (&'static str, Vec<(&'static str, Range<usize>)>);

fn labelled() -> Vec<Line> {
    let lines = LINES.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut parts = line.split('\t');
            let text = parts.next().unwrap();
            let mut from = 0;
            let labels = parts.map(|label| {
                let (kind, value) = label.split_once('=').unwrap();
                let at = from + text.get(from..).unwrap().find(value).expect(line);
                from = at + value.len();
                (kind, at..from)
            });
            (text, labels.collect())
        })
        .collect()
}

#[test]
fn precision_and_recall() {
    let lines = labelled();
    assert!(lines.len() >= 600, "{}", lines.len());
    println!(
        "{:12} {:>8} {:>6} {:>9} {:>7}",
        "kind", "labelled", "found", "precision", "recall"
    );
    let mut short = Vec::new();
    for (kind, precision, recall) in ASKED {
        let (mut right, mut found, mut there) = (0_u32, 0, 0);
        for (text, labels) in &lines {
            let spans: BTreeSet<Span> = find(text.as_bytes(), |wanted| wanted == kind)
                .into_iter()
                .map(|one| (one.range.start, one.range.end))
                .collect();
            let wanted: BTreeSet<Span> = labels
                .iter()
                .filter(|(label, _)| *label == kind.name())
                .map(|(_, range)| (range.start, range.end))
                .collect();
            // A value that is another kind's too is not wrong: a token is random.
            let others = |span: &&Span| {
                labels.iter().any(|(label, range)| {
                    *label != kind.name() && range.start < span.1 && span.0 < range.end
                })
            };
            let wrong = spans.difference(&wanted).filter(|span| !others(span));
            for span in wrong {
                found += 1;
                println!("  {kind} is not: {}  in  {text:.90}", &text[span.0..span.1]);
            }
            for span in wanted.difference(&spans) {
                println!("  {kind} not found: {}", &text[span.0..span.1]);
            }
            let both = spans.intersection(&wanted).count();
            right += u32::try_from(both).unwrap();
            found += u32::try_from(both).unwrap();
            there += u32::try_from(wanted.len()).unwrap();
        }
        let of = |of: u32| f64::from(right) / f64::from(of.max(1));
        println!(
            "{:12} {there:>8} {found:>6} {:>9.3} {:>7.3}",
            kind.name(),
            of(found),
            of(there)
        );
        if right * 100 < found * precision || right * 100 < there * recall || there < 20 {
            short.push(kind);
        }
    }
    assert!(short.is_empty(), "fewer than asked: {short:?}");
}
