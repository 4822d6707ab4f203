//! Which line of a text a byte is in.

/// Counts the lines of a text, each once: places are asked for in order.
pub(super) struct Lines<'a> {
    text: &'a [u8],
    offset: usize,
    line: u64,
}

impl<'a> Lines<'a> {
    pub(super) fn of(text: &'a [u8]) -> Self {
        Self {
            text,
            offset: 0,
            line: 1,
        }
    }

    /// The line, from 1, of what stands at `offset` or, behind ends of lines, after it.
    pub(super) fn at(&mut self, offset: usize) -> u64 {
        let ends = self.text.iter().skip(offset);
        let ends = ends.take_while(|byte| b"\r\n".contains(byte)).count();
        let to = (offset + ends).clamp(self.offset, self.text.len());
        let passed = self.text[self.offset..to].iter();
        self.line += passed.filter(|&&byte| byte == b'\n').count() as u64;
        self.offset = to;
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_lines_are_passed_over_and_counted() {
        let mut lines = Lines::of(b"a\r\n\r\nb\nc");
        assert_eq!(
            [0, 1, 3, 5, 6, 7, 99].map(|at| lines.at(at)),
            [1, 3, 3, 3, 4, 4, 4]
        );
    }
}
