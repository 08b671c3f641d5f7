//! `mantled detach --all`: gives the host back.

use mantled_redirect::Pins;

use super::Exit;

/// Arguments of `mantled detach`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Everything: programs, maps, enrolments. Agents are unprotected from then on.
    #[arg(long, required = true)]
    all: bool,
}

pub(super) fn run(_: &Arguments) -> Result<(), Exit> {
    let pins = Pins::default();
    if !pins.exist() {
        println!("nothing is attached");
        return Ok(());
    }
    let detached = pins.remove()?;
    println!("detached {} programs and removed every pin", detached.len());
    Ok(())
}
