//! The matrix's own program: proves the agent on the kernel it runs on, one line of JSON a finding.
//!
//! As process 1 of a virtual machine it first makes a system of an empty initramfs, and turns the
//! machine off when it is done. Started on a running machine it only does the proving.

use std::process::ExitCode;

use egress_tests::guest;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::machine::run()
    } else {
        match guest::prove() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                guest::finding::broke(&error);
                ExitCode::FAILURE
            }
        }
    }
}
