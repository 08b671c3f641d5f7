//! A configuration is valid, or every mistake in it comes with a place and a remedy.
#![no_main]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the module is the daemon's; this uses one function"
)]

#[path = "../../../userspace/mantled/src"]
mod daemon {
    pub mod config;
}

use std::path::Path;

use daemon::config::{Config, NoFiles};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let parse = || Config::parse_with(text, Path::new("f.toml"), &NoFiles);
    let parsed = parse();
    assert_eq!(parsed, parse(), "the text decides");
    let Err(errors) = parsed else { return };

    assert!(!errors.errors().is_empty());
    for error in errors.errors() {
        let (line, column) = error.position.expect("the file was read");
        let lines = text.split('\n').count();
        assert!(
            (1..=lines).contains(&line) && column >= 1,
            "{error:?} of {lines} lines"
        );
        for said in [&error.message, &error.hint] {
            assert!(
                !said.trim().is_empty() && !said.contains(char::is_control),
                "{error:?}"
            );
        }
    }
    assert_eq!(
        errors.to_string().lines().count(),
        2 * errors.errors().len()
    );
});
