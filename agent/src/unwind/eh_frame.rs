//! From an ELF file to rows: `.eh_frame`, then `.debug_frame` for what that leaves out, then what
//! the code's bytes tell.
//!
//! Layouts: LSB 5 (`.eh_frame`, `.eh_frame_hdr`), DWARF 5 section 6.4 (`.debug_frame`).

use std::{borrow::Borrow, ops::Range};

use gimli::{DebugFrame, EhFrame, LittleEndian};
use hotspan_abi::unwind::Rule;
use object::ReadRef;

use super::{
    Found, Refused, Rows, TableRule,
    arch::Arch,
    bare_code,
    cfi::{Frames, Output},
    image::{FrameSection, Image},
    steps::Steps,
};

/// Up to so many bytes between two functions are padding: the row before holds there too.
const PADDING_BYTES: u64 = 15;

/// Reads a file's rows. An `object::ReadCache` over the file reads only what is needed, and unlike
/// a mapping it cannot fault when the target process truncates the file. `debug_file` is the one that holds what was stripped off, see
/// [`super::debug_file`].
///
/// # Errors
/// When nothing in the file can be used.
pub fn rows<'a, R: ReadRef<'a>>(file: R, debug_file: Option<R>) -> Result<Found, Refused> {
    let image = Image::parse(file)?;
    let (arch, text) = (image.arch(), image.text());
    let mut output = Output::default();
    let mut steps = Steps::default();
    if let Some(section) = image.eh_frame() {
        steps = eh_frame_steps(&image, &section, &text, &mut output);
    }
    if let Some(section) = image.debug_frame() {
        steps = steps.or(debug_frame_steps(&image, &section, &text, &mut output));
    }
    if let Some(debug_image) = debug_file.and_then(|file| Image::parse(file).ok())
        && let Some(section) = debug_image.debug_frame()
    {
        steps = steps.or(debug_frame_steps(&image, &section, &text, &mut output));
    }
    let code = image.code(&text);
    let gaps = steps.gaps(&code, PADDING_BYTES);
    let bytes = |ranges: &[Range<u64>]| ranges.iter().map(|range| range.end - range.start).sum();
    (output.report.code_bytes, output.report.bare_bytes) = (bytes(&code), bytes(&gaps));
    output.report.text = text;
    let steps = steps.or(bare_code::steps(&image, &gaps, &mut output.wide));
    Ok(Found {
        arch,
        rows: Rows {
            rows: close(arch, &steps),
            wide: output.wide.list,
        },
        report: output.report,
    })
}

fn eh_frame_steps<'a, R: ReadRef<'a>>(
    image: &Image<'a, R>,
    section: &FrameSection<'_>,
    text: &[Range<u64>],
    output: &mut Output,
) -> Steps {
    let bytes: &[u8] = section.bytes.borrow();
    let mut reader = EhFrame::new(bytes, LittleEndian);
    reader.set_vendor(image.arch().facts().vendor);
    let frames = Frames {
        arch: image.arch(),
        section: reader,
        bytes,
        bases: &section.bases,
        ends_at_zero: section.ends_at_zero,
        code: &|range| code(image, range),
    };
    frames.steps(text, output)
}

fn debug_frame_steps<'a, R: ReadRef<'a>>(
    image: &Image<'a, R>,
    section: &FrameSection<'_>,
    text: &[Range<u64>],
    output: &mut Output,
) -> Steps {
    let bytes: &[u8] = section.bytes.borrow();
    let mut reader = DebugFrame::new(bytes, LittleEndian);
    reader.set_vendor(image.arch().facts().vendor);
    let frames = Frames {
        arch: image.arch(),
        section: reader,
        bytes,
        bases: &section.bases,
        ends_at_zero: section.ends_at_zero,
        code: &|range| code(image, range),
    };
    frames.steps(text, output)
}

/// The code of a file at these addresses, so much of it as there is.
fn code<'a, R: ReadRef<'a>>(image: &Image<'a, R>, range: Range<u64>) -> &'a [u8] {
    image
        .bytes_at(range.start, range.end - range.start)
        .unwrap_or_default()
}

/// Makes rows: padding belongs to the row before it, all else that is not known has no rule. glibc says
/// nothing of the instructions in which a new thread and its parent part: what is said behind them is the
/// thread's.
fn close(arch: Arch, steps: &Steps) -> Vec<(u64, TableRule)> {
    let just_called = Some(TableRule::Short(arch.facts().just_called));
    let root = Some(TableRule::Short(Rule::ROOT));
    let mut rows: Vec<(u64, TableRule)> = Vec::with_capacity(steps.len());
    let mut following = steps.iter().skip(1);
    for (addr, rule) in steps.iter() {
        let next = following.next();
        let before = rows.last().map(|row| row.1);
        let is_padding = next.is_some_and(|next| next.0 - addr <= PADDING_BYTES);
        let rule = match (rule, next) {
            (Some(rule), _) => rule,
            (None, Some(next)) if is_padding && before == just_called && next.1 == root => {
                TableRule::Short(Rule::NEW_THREAD)
            }
            (None, _) if is_padding => continue,
            (None, _) => TableRule::NONE,
        };
        if rows.last().is_none_or(|last| last.1 != rule) {
            rows.push((addr, rule));
        }
    }
    rows
}

#[cfg(test)]
mod tests;
