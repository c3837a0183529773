import { TableNG } from "@grafana/ui/unstable";
import type { Drawing } from "./Drawn";

/** Nobody can widen a column of a picture: they are as wide as what is in them asks for. */
export function Rows({ panel, frames, time, width, height }: Drawing) {
  const [data] = frames;
  if (data === undefined) return null;
  return (
    <TableNG
      data={data}
      fieldConfig={panel.fieldConfig}
      timeRange={time}
      contentAwareWidthsEnabled
      width={width}
      height={height}
    />
  );
}
