alias Element = vec4<f32>;
const WIDTH = 4u;

fn total(x: Element) -> f32 {
    return (x.x + x.z) + (x.y + x.w);
}
