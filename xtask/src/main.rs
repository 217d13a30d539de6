//! The project's own commands: `cargo xtask <TASK>`.
//!
//! One task per file; each fetches what it needs through [`setup::ensure`], so that a fresh clone
//! on a fresh machine needs no other step. Invariant: depends on none of our crates, so that it
//! builds in seconds and still runs when they do not compile.

mod build;
mod ci;
mod demo;
mod generate;
mod matrix;
mod object;
mod paths;
mod process;
mod setup;
#[path = "../../egress-ebpf/sources.rs"]
mod sources;
mod strip;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
///
/// New here? `cargo xtask demo` shows the product, `cargo xtask test` proves it; both as root on
/// Linux, both fetch the tools they need.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Make this machine able to build, demo and test.
    ///
    /// Installs nft and ip, the standard library's source, bpf-linker, Envoy and Prometheus, and
    /// builds a Kubernetes API server and istiod with Go for the tests, each only if it is missing.
    /// Tools are kept by version in the user's cache directory, so a second clone reuses them. Safe
    /// to repeat; the other tasks call what they need of it.
    Setup,
    /// Build the eBPF object, keep it in the repository, and build the agent.
    Build(build::Arguments),
    /// Run every test: pure ones, the eBPF crate on the host, the kernel and agent suites.
    ///
    /// Needs root, because kernel tests load programs and make namespaces. Nothing is skipped.
    /// `cargo xtask test adversary` runs exactly the adversary suite: every attack and every
    /// legitimate vector of docs/threat-model.md, on both wirings and over both families.
    /// With KUBEBUILDER_ASSETS (a directory with etcd and kube-apiserver) or KUBECONFIG set, the
    /// suites of the API server use that one; KUBECONFIG's cluster must be one for tests.
    Test(test::Arguments),
    /// Show the product on this machine: real kernel, real Envoy, no cluster.
    ///
    /// Needs root. Works in namespaces of its own and removes them.
    Demo(demo::Arguments),
    /// Prove the agent on kernels 5.10, 6.1, 6.12, 7.3 and the running one; a table.
    ///
    /// Needs root. Boots Debian's cloud kernels under qemu (TCG) with the real agent in a lab of
    /// namespaces: programs load, attach and enforce, also while the agent is killed and replaced.
    /// Without arguments it also writes docs/kernels.md.
    Matrix(matrix::Arguments),
    /// Write what is made from the code: deploy/crds, deploy/rbac.yaml, deploy/alerts, docs.
    ///
    /// A test fails while the files differ from the code; this task is its remedy.
    Generate,
    /// Check the house rules that a compiler cannot.
    Tidy,
    /// Run what a change must pass: fmt, clippy, tidy, the object's reproduction, test.
    Ci(ci::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup => setup::run(),
        Task::Build(arguments) => build::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Matrix(arguments) => matrix::run(&arguments),
        Task::Generate => generate::run(),
        Task::Tidy => tidy::run(),
        Task::Ci(arguments) => ci::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
