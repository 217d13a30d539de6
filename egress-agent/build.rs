//! Placeholder.
fn main() {
    println!(
        "cargo:rustc-env=EGRESS_EBPF_OBJECT={}/../target/bpf/bpfel-unknown-none/release/egress-ebpf",
        env!("CARGO_MANIFEST_DIR")
    );
}
