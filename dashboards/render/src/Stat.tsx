import { getDisplayValueAlignmentFactors, getFieldDisplayValues, VizOrientation, type FieldDisplay } from "@grafana/data";
import { BigValue, BigValueGraphMode, useTheme2, VizRepeater } from "@grafana/ui";
import type { Drawing } from "./Drawn";

export function Stat({ panel, frames, time, width, height }: Drawing) {
  const theme = useTheme2();
  const options = panel.options as any;
  const values = () =>
    getFieldDisplayValues({
      data: frames,
      fieldConfig: panel.fieldConfig,
      reduceOptions: options.reduceOptions,
      replaceVariables: (text) => text,
      sparkline: options.graphMode !== BigValueGraphMode.None,
      theme,
      timeZone: "browser",
    });
  return (
    <div data-drawn>
      <VizRepeater<FieldDisplay, ReturnType<typeof getDisplayValueAlignmentFactors>>
        getValues={values}
        getAlignmentFactors={getDisplayValueAlignmentFactors}
        renderValue={({ value, alignmentFactors, count, width, height }) => (
          <BigValue
            value={value.display}
            sparkline={value.sparkline && { ...value.sparkline, timeRange: time }}
            count={count}
            alignmentFactors={alignmentFactors}
            colorMode={options.colorMode}
            graphMode={options.graphMode}
            justifyMode={options.justifyMode}
            textMode={options.textMode}
            width={width}
            height={height}
            theme={theme}
          />
        )}
        source={frames}
        renderCounter={0}
        orientation={options.orientation ?? VizOrientation.Auto}
        autoGrid
        itemSpacing={3}
        width={width}
        height={height}
      />
    </div>
  );
}
