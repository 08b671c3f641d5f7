//! Empty: it exists so that `mantled-redirect`'s build script can depend on this package and is
//! run again when a kernel program changes. The programs are in `main.rs`.
#![no_std]
