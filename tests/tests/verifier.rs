//! The running kernel accepts every program.
use aya::programs::{CgroupSkb, CgroupSockAddr, ProgramError, SchedClassifier};

#[test]
fn verifier_accepts_every_program() {
    let path = std::env::var("EGRESS_EBPF_OBJECT_PATH").unwrap();
    let bytes = std::fs::read(path).unwrap();
    let mut ebpf = aya::EbpfLoader::new().load(&bytes).unwrap();
    let mut bad = 0;
    for name in
        ["pod_egress", "pod_ingress", "wall", "connect4", "connect6", "sendmsg4", "sendmsg6"]
    {
        let program = ebpf.program_mut(name).unwrap();
        let result: Result<(), ProgramError> = match name {
            "pod_egress" | "pod_ingress" => {
                let p: &mut SchedClassifier = program.try_into().unwrap();
                p.load()
            }
            "wall" => {
                let p: &mut CgroupSkb = program.try_into().unwrap();
                p.load()
            }
            _ => {
                let p: &mut CgroupSockAddr = program.try_into().unwrap();
                p.load()
            }
        };
        match result {
            Ok(()) => {
                let i = program.info().unwrap();
                println!("{name}: {:?} insns verified", i.verified_instruction_count());
            }
            Err(e) => {
                bad += 1;
                let s = format!("{e:?}");
                println!(
                    "{name}: FAIL {}",
                    &s[s.len().saturating_sub(1500)..].replace("\\n", "\n")
                );
            }
        }
    }
    assert_eq!(bad, 0);
}
