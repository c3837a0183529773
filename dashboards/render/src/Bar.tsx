// What stands above the panels: the title, the variables and the time.
import { rangeUtil, type TimeRange } from "@grafana/data";
import { InlineField, Input, Stack, Text, ToolbarButton } from "@grafana/ui";
import type { Value } from "./variables";

export function Bar({ title, values, time }: { title: string; values: Value[]; time: TimeRange }) {
  return (
    <Stack direction="column" gap={2}>
      <Stack justifyContent="space-between" alignItems="center">
        <Text element="h1" variant="h4">
          {title}
        </Text>
        <ToolbarButton icon="clock-nine" variant="canvas">
          {rangeUtil.describeTimeRange(time.raw)}
        </ToolbarButton>
      </Stack>
      <Stack gap={1} wrap="wrap">
        {values.map(({ label, shown }) => (
          <InlineField key={label} label={label}>
            <Input value={shown} readOnly width={Math.max(12, shown.length + 4)} />
          </InlineField>
        ))}
      </Stack>
    </Stack>
  );
}
