// What ComfyUI's page offers. It has no types of its own that one could install.

declare module "*/scripts/app.js" {
  export const app: any;
}
declare module "*/scripts/api.js" {
  export const api: any;
}
declare var LGraphCanvas: any;
declare var LiteGraph: any;
