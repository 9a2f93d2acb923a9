//! Decides whether AMX's tiles are used.

#![expect(unsafe_code, reason = "the CPU and the system are asked for tiles")]

use std::sync::OnceLock;

/// Switches tiles on.
const WANTED: &str = "LLMCLS_AMX";

/// Whether tiles are used: they must be asked for, the CPU must have them, and the system must let them be
/// used. Decided once.
pub(super) fn is_on() -> bool {
    static IS_ON: OnceLock<bool> = OnceLock::new();
    *IS_ON.get_or_init(|| decide(std::env::var(WANTED).ok().as_deref(), has_tiles, request_permission))
}

/// The system is asked only for what is wanted and there.
fn decide(wanted: Option<&str>, has_tiles: impl FnOnce() -> bool, is_permitted: impl FnOnce() -> bool) -> bool {
    wanted == Some("1") && has_tiles() && is_permitted()
}

/// Returns true if the CPU has AMX-TILE and AMX-BF16. The operating system may still forbid programs to use them.
pub(super) fn are_in_the_cpu() -> bool {
    use std::arch::x86_64::{__cpuid_count, __get_cpuid_max};
    const TILES_AND_BF16: u32 = 1 << 24 | 1 << 22;
    let (most, _) = __get_cpuid_max(0);
    most >= 7 && __cpuid_count(7, 0).edx & TILES_AND_BF16 == TILES_AND_BF16
}

/// Returns true if the CPU has tiles and the operating system saves their registers.
fn has_tiles() -> bool {
    use std::arch::x86_64::_xgetbv;
    const TILE_STATE: u64 = 3 << 17;
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: the CPU and the system have XSAVE, as AVX-512 was detected.
        unsafe { _xgetbv(0) }
    }
    are_in_the_cpu()
        && is_x86_feature_detected!("xsave")
        // SAFETY: it was just detected.
        && unsafe { enabled() } & TILE_STATE == TILE_STATE
}

/// Asks Linux (5.16 and later) for the tile registers of this process: without them the first tile
/// instruction ends it.
fn request_permission() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: the call changes no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_used_where_they_are_wanted_there_and_permitted() {
        for (wanted, has_tiles, is_permitted, expected) in [
            (Some("1"), true, true, true),
            (Some("1"), true, false, false),
            (Some("1"), false, true, false),
            (Some("0"), true, true, false),
            (Some(""), true, true, false),
            (None, true, true, false),
        ] {
            let mut was_asked = false;
            let found = decide(
                wanted,
                || has_tiles,
                || {
                    was_asked = true;
                    is_permitted
                },
            );
            assert_eq!(found, expected, "{wanted:?} {has_tiles} {is_permitted}");
            assert_eq!(was_asked, wanted == Some("1") && has_tiles, "the system was asked");
        }
    }
}
