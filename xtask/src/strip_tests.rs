//! The rewriter, on a hand-made object with one DWARF section before what must be kept.

use super::*;

const NAMES: &[u8] = b"\0.text\0.debug_info\0.rel.debug_info\0.BTF\0.rel.BTF\0.symtab\0.strtab\0";

#[test]
fn dwarf_goes_and_the_rest_keeps_its_bytes() {
    let stripped = parse(&strip_debug(&object()).unwrap()).unwrap();
    let names: Vec<_> = stripped.iter().map(|section| section.name.as_str()).collect();
    assert_eq!(names, ["", ".text", ".BTF", ".rel.BTF", ".symtab", ".strtab"]);
    assert_eq!(stripped[1].content, [0x95; 8]);
    assert_eq!(stripped[2].content, b"types");
}

#[test]
fn references_follow_what_moved() {
    let stripped = parse(&strip_debug(&object()).unwrap()).unwrap();
    let relocations = &stripped[3];
    assert_eq!((relocations.link().unwrap(), relocations.info().unwrap()), (4, 2));
    // Symbols were null, .text, .debug_info, program; the third is gone.
    assert_eq!(read_u32(&relocations.content, 12).unwrap(), 2);
    let symbols = &stripped[4];
    assert_eq!(symbols.content.len(), 3 * SYMBOL);
    assert_eq!((symbols.link().unwrap(), symbols.info().unwrap()), (5, 2));
    assert_eq!(read_u16(&symbols.content, 2 * SYMBOL + 6).unwrap(), 1);
}

#[test]
fn stripping_twice_changes_nothing() {
    let once = strip_debug(&object()).unwrap();
    assert_eq!(strip_debug(&once).unwrap(), once);
}

#[test]
fn anything_but_such_an_object_is_refused() {
    assert!(strip_debug(b"not an object").is_err());
    let object = object();
    for length in [5, 63, 100, object.len() - 1] {
        assert!(strip_debug(&object[..length]).is_err(), "cut at {length}");
    }
}

/// `.text`, DWARF with its relocations, `.BTF` with its relocations, symbols, names.
fn object() -> Vec<u8> {
    let symbols = [symbol(0, 0), symbol(3, 1), symbol(3, 2), symbol(0x12, 1)].concat();
    let sections: [(&str, u32, u32, u32, Vec<u8>); 8] = [
        ("", 0, 0, 0, vec![]),
        (".text", 1, 0, 0, vec![0x95; 8]),
        (".debug_info", 1, 0, 0, vec![7; 40]),
        (".rel.debug_info", SHT_REL, 6, 2, relocation(2)),
        (".BTF", 1, 0, 0, b"types".to_vec()),
        (".rel.BTF", SHT_REL, 6, 4, relocation(3)),
        (".symtab", SHT_SYMTAB, 7, 3, symbols),
        (".strtab", 3, 0, 0, NAMES.to_vec()),
    ];
    let sections: Vec<Section> = sections
        .into_iter()
        .map(|(name, kind, link, info, content)| {
            let mut header = [0; SECTION];
            let position = NAMES
                .windows(name.len() + 1)
                .position(|window| window.strip_suffix(b"\0") == Some(name.as_bytes()))
                .unwrap();
            write_u32(&mut header, 0, u32::try_from(position).unwrap());
            write_u32(&mut header, 4, kind);
            write_u32(&mut header, 40, link);
            write_u32(&mut header, 44, info);
            write_u32(&mut header, 48, 8);
            Section { name: name.to_owned(), header, content }
        })
        .collect();
    let mut header = vec![0; HEADER];
    header[..6].copy_from_slice(b"\x7fELF\x02\x01");
    header[16] = 1;
    header[58] = 64;
    write(&header, &sections, 7).unwrap()
}

fn symbol(info: u8, section: u16) -> Vec<u8> {
    let mut symbol = vec![0; SYMBOL];
    symbol[4] = info;
    symbol[6..8].copy_from_slice(&section.to_le_bytes());
    symbol
}

fn relocation(symbol: u32) -> Vec<u8> {
    let mut relocation = vec![0; RELOCATION];
    write_u32(&mut relocation, 12, symbol);
    relocation
}
