// Stands for a file that the plan's code imports and does not contain.
export const logger = {
  info: (...values: unknown[]) => console.error('info', ...values),
  warn: (...values: unknown[]) => console.error('warn', ...values),
  error: (...values: unknown[]) => console.error('error', ...values),
};
