//! What a bad file is told: each mistake with its exact lines.

use super::*;

/// Input, `---`, what is printed without the file's name, `===`.
const MISTAKES: &str = include_str!("mistakes.txt");

fn mistakes() -> impl Iterator<Item = (&'static str, &'static str)> {
    MISTAKES
        .split_terminator("\n===\n")
        .map(|case| case.split_once("\n---\n").expect(case))
}

fn told(made: &Made, text: &str) -> String {
    let errors = made.parse(text).expect_err(text).to_string();
    errors.replace("/etc/mantled/mantled.toml:", "")
}

#[test]
fn each_mistake() {
    let made = Made::new();
    let mut wrong = String::new();
    for (text, expected) in mistakes() {
        let told = told(&made, text);
        if told != expected {
            wrong += &format!("{text}\n---\n{told}\n===\n");
        }
    }
    assert!(wrong.is_empty(), "told otherwise:\n{wrong}");
}

#[test]
fn all_mistakes_at_once() {
    let text = r#"on_daemon_down = "shut"
[listen]
port = 70000
[[enroll]]
unit = "a.service"
mode = "survey"
[[enroll]]
unit = "a.service"
mode = enforce
[[route]]
cidr = "192.0.2.7/24"
prot = 5432
server_name = "a b"
roots = ["gone.pem"]
[[bypass]]
cidr = "0.0.0.0/0"
reason = ""
[limits]
detect = 3
"#;
    let errors = Made::new().parse(text).unwrap_err();
    let lines: Vec<_> = errors
        .errors()
        .iter()
        .map(|e| e.position.unwrap().0)
        .collect();
    assert_eq!(
        lines,
        [1, 3, 6, 8, 9, 11, 12, 13, 14, 16, 17, 19],
        "{errors}"
    );
    let printed = errors.to_string();
    assert_eq!(printed.lines().count(), 2 * lines.len());
    for pair in printed.lines().collect::<Vec<_>>().chunks(2) {
        assert!(
            pair[0].starts_with("/etc/mantled/mantled.toml:"),
            "{printed}"
        );
        assert!(pair[0].contains(": error: "), "{printed}");
        assert!(pair[1].starts_with("    hint: "), "{printed}");
    }
}

#[test]
fn too_many_bypassed_ports() {
    let entry = |cidr: &str, port: u16| {
        format!("[[bypass]]\ncidr = '{cidr}'\nport = {port}\nreason = 'x'\n")
    };
    let mut text: String = (1..=10).map(|port| entry("10.1.0.0/16", port)).collect();
    text.extend((11..=16).map(|port| entry("10.0.0.0/8", port)));
    parse(&text);
    text += &entry("10.0.0.0/8", 17);
    assert_eq!(
        told(&Made::new(), &text),
        "66:8: error: 10.1.0.0/16 has more than 16 bypassed ports, those of the networks around \
         it included\n    hint: bypass fewer ports, or a smaller network without `port`"
    );
}

#[test]
fn a_file_that_cannot_be_read() {
    let missing = Config::load(Path::new("/nonexistent/m.toml")).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "/nonexistent/m.toml: error: there is no such file\n    hint: write one, or name another \
         file with `--config`; an empty one is valid"
    );
    let directory = Config::load(Path::new("/")).unwrap_err();
    assert_eq!(
        directory.to_string(),
        "/: error: cannot be read: not a regular file\n    hint: name a file that the user that \
         mantled runs as can read"
    );
    let latin1 = std::env::temp_dir().join(format!("mantled-latin1-{}.toml", std::process::id()));
    std::fs::write(&latin1, b"[listen]\nport = 1 # M\xfcller\n").unwrap();
    let errors = Config::load(&latin1).unwrap_err();
    std::fs::remove_file(&latin1).unwrap();
    assert_eq!(errors.errors()[0].position, Some((2, 13)));
}

#[test]
fn what_is_quoted_stays_on_one_line() {
    let text = format!(
        "[dns]\nresolvers = [\"\"\"\na\u{1b}[31m{}\"\"\"]\n",
        "x".repeat(500)
    );
    let text = text.replace('\u{1b}', "\\u001b");
    let told = told(&Made::new(), &text);
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(
        told.contains("`a\\u{1b}[31mx") && told.len() < 200,
        "{told}"
    );
}

/// Whatever is cut off or left out, an answer comes, and every error has its place in the text.
#[test]
fn no_text_panics() {
    let texts = mistakes()
        .map(|(text, _)| text)
        .chain([SHIPPED, "a = \u{feff}'\u{10ffff}"]);
    for text in texts {
        for (cut, c) in text.char_indices() {
            let (before, after) = text.split_at(cut);
            let without = format!("{before}{}", &after[c.len_utf8()..]);
            for text in [before, after, &without, &format!("{before}\"{after}")] {
                let result = Config::parse_with(text, Path::new("f"), &NoFiles);
                for error in result.err().iter().flat_map(ConfigErrors::errors) {
                    let (line, column) = error.position.unwrap();
                    assert!(line <= text.matches('\n').count() + 1 && column >= 1);
                    assert!(!error.message.contains('\n') && !error.hint.contains('\n'));
                }
            }
        }
    }
}
