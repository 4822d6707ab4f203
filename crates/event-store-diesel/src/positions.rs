//! Ascending positions in few bytes: each as LEB128 of its difference to the one before.

use domain_events::Position;

/// The positions as bytes; `None` unless they ascend from 1.
pub(crate) fn encode(positions: &[Position]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(positions.len() * 2);
    let mut before = 0;
    for position in positions {
        let difference = position.get().checked_sub(before)?;
        if difference == 0 {
            return None;
        }
        put(&mut bytes, difference);
        before = position.get();
    }
    Some(bytes)
}

/// The positions that `bytes` stand for; `None` unless [`encode`] could have made them.
pub(crate) fn decode(mut bytes: &[u8]) -> Option<Vec<Position>> {
    let mut positions = Vec::new();
    let mut before = 0_u64;
    while !bytes.is_empty() {
        let difference = take(&mut bytes)?;
        before = before.checked_add(difference).filter(|_| difference > 0)?;
        positions.push(Position::new(before));
    }
    Some(positions)
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        number |= bits.checked_shl(shift).filter(|it| it >> shift == bits)?;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(numbers: &[u64]) -> Vec<Position> {
        numbers.iter().copied().map(Position::new).collect()
    }

    #[test]
    fn positions_survive_their_bytes() {
        for numbers in [
            &[][..],
            &[1],
            &[1, 2, 3, 130, 70_000, u64::MAX],
            &[u64::MAX],
        ] {
            let bytes = encode(&of(numbers)).unwrap();
            assert_eq!(decode(&bytes).unwrap(), of(numbers));
        }
    }

    #[test]
    fn neighbours_take_one_byte_each() {
        let positions: Vec<u64> = (1..=1_000).collect();
        assert_eq!(encode(&of(&positions)).unwrap().len(), 1_000);
    }

    #[test]
    fn what_does_not_ascend_is_refused() {
        for numbers in [&[0][..], &[2, 2], &[3, 1]] {
            assert_eq!(encode(&of(numbers)), None);
        }
        for bytes in [&[0x80][..], &[0], &[0xff; 11]] {
            assert_eq!(decode(bytes), None);
        }
    }
}
