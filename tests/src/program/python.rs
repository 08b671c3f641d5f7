use std::fs;

use anyhow::Result;

use super::Program;
use crate::{Lab, Leaf, python_program};

impl Program {
    /// A server of `tests/clients` that takes its address, a certificate and more arguments. What
    /// it prints is in [`Self::printed`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn python(lab: &Lab, leaf: &Leaf, name: &str, port: u16, more: &[&str]) -> Result<Self> {
        let (certificate, key) = (format!("server-{port}.pem"), format!("server-{port}.key"));
        fs::write(lab.path(&certificate), &leaf.certificate)?;
        fs::write(lab.path(&key), &leaf.key)?;
        let [python, program] = python_program(name)?;
        let mut command = lab.site.command(python);
        command
            .arg(program)
            .args(["10.99.0.2", &port.to_string()])
            .arg(lab.path(&certificate))
            .arg(lab.path(&key))
            .args(more);
        Self::start(lab, command, port)
    }
}
