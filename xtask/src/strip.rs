//! Takes the DWARF out of an eBPF object and leaves everything a loader reads.
//!
//! `objcopy` of most distributions does not know this machine type, so this is a rewriter for
//! exactly the objects that `bpf-linker` makes: 64-bit little-endian relocatable ELF. Sections
//! `.debug_*` and their relocations go, with the symbols that stand for them; BTF stays, and so
//! does every byte of the sections kept. The result depends on the input alone.

use anyhow::{Context as _, Result, bail, ensure};

const HEADER: usize = 64;
const SECTION: usize = 64;
const SYMBOL: usize = 24;
const RELOCATION: usize = 16;

const SHT_SYMTAB: u32 = 2;
const SHT_RELA: u32 = 4;
const SHT_NOBITS: u32 = 8;
const SHT_REL: u32 = 9;
/// Section indexes from here on have special meanings.
const SHN_LORESERVE: u16 = 0xff00;

/// One section: its header fields and its bytes.
struct Section {
    name: String,
    header: [u8; SECTION],
    content: Vec<u8>,
}

impl Section {
    fn kind(&self) -> Result<u32> {
        read_u32(&self.header, 4)
    }

    fn link(&self) -> Result<u32> {
        read_u32(&self.header, 40)
    }

    fn info(&self) -> Result<u32> {
        read_u32(&self.header, 44)
    }
}

/// Removes DWARF from `elf`.
pub(crate) fn strip_debug(elf: &[u8]) -> Result<Vec<u8>> {
    let sections = parse(elf)?;
    let dropped = |name: &str| name.starts_with(".debug_") || name.starts_with(".rel.debug_");

    // Where each section goes; `None` for those that go away.
    let mut moved = Vec::with_capacity(sections.len());
    let mut next = 0u32;
    for section in &sections {
        let stays = !dropped(&section.name);
        moved.push(stays.then_some(next));
        next += u32::from(stays);
    }
    let goes_to =
        |index: u32| -> Result<u32> {
            moved.get(index as usize).copied().flatten().with_context(|| {
                format!("a kept section refers to section {index}, which is DWARF")
            })
        };

    let table = sections
        .iter()
        .find(|section| section.kind().is_ok_and(|kind| kind == SHT_SYMTAB))
        .context("the object has no symbol table")?;
    let symbols = rewrite_symbols(table, &moved)?;

    let mut kept = Vec::new();
    for section in &sections {
        if dropped(&section.name) {
            continue;
        }
        let mut header = section.header;
        let mut content = section.content.clone();
        write_u32(&mut header, 40, goes_to(section.link()?)?);
        match section.kind()? {
            SHT_SYMTAB => {
                content.clone_from(&symbols.bytes);
                write_u32(&mut header, 44, symbols.locals);
            }
            SHT_REL => {
                write_u32(&mut header, 44, goes_to(section.info()?)?);
                for entry in content.chunks_exact_mut(RELOCATION) {
                    let symbol = read_u32(entry, 12)?;
                    let new = symbols.moved.get(symbol as usize).copied().flatten().with_context(
                        || format!("{} refers to symbol {symbol}, which is DWARF's", section.name),
                    )?;
                    write_u32(entry, 12, new);
                }
            }
            SHT_RELA => bail!("{} has addends, which no BPF object has", section.name),
            _ => {}
        }
        kept.push(Section { name: section.name.clone(), header, content });
    }
    let names = goes_to(u32::from(read_u16(elf, 62)?))?;
    write(elf, &kept, names)
}

/// The new symbol table, and where each old symbol went.
struct Symbols {
    bytes: Vec<u8>,
    moved: Vec<Option<u32>>,
    /// Local symbols come first; this many.
    locals: u32,
}

fn rewrite_symbols(table: &Section, sections: &[Option<u32>]) -> Result<Symbols> {
    let mut symbols = Symbols { bytes: Vec::new(), moved: Vec::new(), locals: 0 };
    let locals = table.info()?;
    for (index, entry) in table.content.chunks_exact(SYMBOL).enumerate() {
        let section = read_u16(entry, 6)?;
        let mut entry = entry.to_vec();
        if section < SHN_LORESERVE {
            let Some(new) = sections.get(usize::from(section)).copied().flatten() else {
                symbols.moved.push(None);
                continue;
            };
            let new = u16::try_from(new).context("too many sections")?;
            entry[6..8].copy_from_slice(&new.to_le_bytes());
        }
        let position = u32::try_from(symbols.bytes.len() / SYMBOL).context("too many symbols")?;
        symbols.moved.push(Some(position));
        symbols.bytes.extend(entry);
        if (index as u64) < u64::from(locals) {
            symbols.locals += 1;
        }
    }
    Ok(symbols)
}

fn parse(elf: &[u8]) -> Result<Vec<Section>> {
    ensure!(elf.starts_with(b"\x7fELF"), "not an ELF object");
    ensure!(elf.get(4..6) == Some(&[2, 1]), "not a 64-bit little-endian ELF object");
    ensure!(read_u16(elf, 16)? == 1, "not a relocatable ELF object");
    let start = usize::try_from(read_u64(elf, 40)?).context("section table beyond the file")?;
    ensure!(usize::from(read_u16(elf, 58)?) == SECTION, "unexpected size of section headers");
    let count = usize::from(read_u16(elf, 60)?);
    let names = usize::from(read_u16(elf, 62)?);

    let mut sections = Vec::with_capacity(count);
    for index in 0..count {
        let mut header = [0; SECTION];
        header.copy_from_slice(bytes(elf, start + index * SECTION, SECTION)?);
        let content = if read_u32(&header, 4)? == SHT_NOBITS {
            Vec::new()
        } else {
            let offset = usize::try_from(read_u64(&header, 24)?)?;
            bytes(elf, offset, usize::try_from(read_u64(&header, 32)?)?)?.to_vec()
        };
        sections.push(Section { name: String::new(), header, content });
    }
    let names = sections.get(names).context("no section names")?.content.clone();
    for section in &mut sections {
        let start = read_u32(&section.header, 0)? as usize;
        let name = names.get(start..).context("section name beyond its table")?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        section.name = String::from_utf8_lossy(&name[..end]).into_owned();
    }
    Ok(sections)
}

/// Lays the sections out again, each at its own alignment, the headers last.
fn write(elf: &[u8], sections: &[Section], names: u32) -> Result<Vec<u8>> {
    let mut out = bytes(elf, 0, HEADER)?.to_vec();
    let mut headers = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let mut header = section.header;
        // The null section has no place in the file.
        if index > 0 {
            let alignment = usize::try_from(read_u64(&header, 48)?)?.max(1);
            out.resize(out.len().next_multiple_of(alignment), 0);
            header[24..32].copy_from_slice(&(out.len() as u64).to_le_bytes());
            if section.kind()? != SHT_NOBITS {
                header[32..40].copy_from_slice(&(section.content.len() as u64).to_le_bytes());
            }
            out.extend(&section.content);
        }
        headers.extend(header);
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let table = out.len() as u64;
    out.extend(headers);
    out[40..48].copy_from_slice(&table.to_le_bytes());
    out[60..62].copy_from_slice(&u16::try_from(sections.len())?.to_le_bytes());
    out[62..64].copy_from_slice(&u16::try_from(names)?.to_le_bytes());
    Ok(out)
}

fn bytes(elf: &[u8], offset: usize, length: usize) -> Result<&[u8]> {
    offset
        .checked_add(length)
        .and_then(|end| elf.get(offset..end))
        .with_context(|| format!("ELF object ends before {length} bytes at {offset}"))
}

fn read_u16(from: &[u8], offset: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(bytes(from, offset, 2)?.try_into()?))
}

fn read_u32(from: &[u8], offset: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(bytes(from, offset, 4)?.try_into()?))
}

fn read_u64(from: &[u8], offset: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(bytes(from, offset, 8)?.try_into()?))
}

fn write_u32(to: &mut [u8], offset: usize, value: u32) {
    to[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
#[path = "strip_tests.rs"]
mod tests;
