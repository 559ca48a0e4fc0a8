alias Element = f32;
const WIDTH = 1u;

fn total(x: Element) -> f32 {
    return x;
}
