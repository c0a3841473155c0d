//! Swaps loom's mutex in for that of `std`, in this package alone.

fn main() {
    println!("cargo::rustc-cfg=loom");
}
